#!/bin/sh
# As volta's document calls it; ARGS are those of `lavis-ext volta download`.
exec "${PYTHON:-python}" "$(dirname "$0")/download_data.py" "$@"
