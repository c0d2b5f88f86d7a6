"""Extraction: a detector's regions of images into a TSV or a store, in groups that can be merged later."""
