"""The verbs about data, and what every verb shares."""
