"""What Oscar and VinVL publish, made from the demo world: region features, annotations, vocabularies and models."""
