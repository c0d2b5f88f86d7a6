"""`python prepare_data/download_sbu.py ARGS` is `lavis-ext prepare sbu_caption ARGS`, wherever it is called."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lavis_ext.cli import main

sys.exit(main(["prepare", "sbu_caption", *sys.argv[1:]]))
