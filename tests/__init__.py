"""A package, so that no `tests` that another distribution installs goes before `tests.world`, which studies draw."""
