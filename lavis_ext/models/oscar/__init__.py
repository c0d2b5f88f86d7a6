"""Oscar and VinVL: a BERT over words, tags and image regions; its heads, its checkpoints, its captions."""
