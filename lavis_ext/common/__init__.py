"""What every part stands on: errors, types, whole-or-absent files, the registry, and typed configuration."""
