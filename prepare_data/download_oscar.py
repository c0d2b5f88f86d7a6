"""`python prepare_data/download_oscar.py TASK… ARGS` is `lavis-ext prepare --family oscar TASK… ARGS`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lavis_ext.cli import main

sys.exit(main(["prepare", "--family", "oscar", *sys.argv[1:]]))
