"""`python prepare_data/mscoco/extract_captions.py ARGS` is `lavis-ext volta captions ARGS`, from anywhere."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lavis_ext.cli import main

sys.exit(main(["volta", "captions", *sys.argv[1:]]))
