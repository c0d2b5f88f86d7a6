"""`python prepare_data/download_vg.py ARGS` is `lavis-ext prepare vg ARGS`, wherever it is called."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lavis_ext.cli import main

sys.exit(main(["prepare", "vg", *sys.argv[1:]]))
