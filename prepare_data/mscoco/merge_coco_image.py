"""`python prepare_data/mscoco/merge_coco_image.py ARGS` is `lavis-ext volta merge ARGS`, from anywhere."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lavis_ext.cli import main

sys.exit(main(["volta", "merge", *sys.argv[1:]]))
