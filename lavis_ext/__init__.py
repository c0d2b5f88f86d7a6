"""A LAVIS-style, config-driven registry plugin for vision-language data: declare, fetch, check, build, train."""
