#!/bin/sh
# As volta's document calls it: the captions of each split, and of test1k; ARGS are those of `lavis-ext volta captions`.
for split in train valid test test1k; do
    "${PYTHON:-python}" "$(dirname "$0")/extract_captions.py" --split "$split" "$@" || exit
done
