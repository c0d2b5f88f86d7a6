#!/bin/sh
# As volta's document calls it: both LMDBs out of the merged rows; ARGS are those of `lavis-ext volta convert`.
for split in trainval test; do
    "${PYTHON:-python}" "$(dirname "$0")/convert_coco_lmdb.py" --split "$split" "$@" || exit
done
