"""`python prepare_data/download_vinvl.py TASK… ARGS` is `lavis-ext prepare --family vinvl TASK… ARGS`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lavis_ext.cli import main

sys.exit(main(["prepare", "--family", "vinvl", *sys.argv[1:]]))
