"""LAVIS' folder name: of its BLIP only the outputs, which models of BLIP-2 give too."""
