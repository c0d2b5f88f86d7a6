"""`python prepare_data/mscoco/extract_coco_image.py ARGS` is `lavis-ext volta extract ARGS`, from anywhere."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lavis_ext.cli import main

sys.exit(main(["volta", "extract", *sys.argv[1:]]))
