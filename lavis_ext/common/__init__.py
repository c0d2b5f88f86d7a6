"""What every part uses: errors, types, atomic files, the registry, and typed configuration."""
