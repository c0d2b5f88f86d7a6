"""What the data sets of all shapes share."""
