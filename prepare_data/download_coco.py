"""`python prepare_data/download_coco.py ARGS` is `lavis-ext prepare coco ARGS`, from any working directory."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lavis_ext.cli import main

sys.exit(main(["prepare", "coco", *sys.argv[1:]]))
