"""Our data sets inside other systems; nothing of theirs is imported before it is asked for."""
