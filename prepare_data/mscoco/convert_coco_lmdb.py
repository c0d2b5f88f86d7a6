"""`python prepare_data/mscoco/convert_coco_lmdb.py ARGS` is `lavis-ext volta convert ARGS`, from anywhere."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lavis_ext.cli import main

sys.exit(main(["volta", "convert", *sys.argv[1:]]))
