"""Data sets by name, the readers below them, and the mixture that turns their rows into batches."""
