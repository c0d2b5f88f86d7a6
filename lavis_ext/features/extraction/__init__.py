"""Extraction: pictures through a detector into rows of a TSV or records of a store, in parts that are joined later."""
