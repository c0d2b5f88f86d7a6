"""`python prepare_data/download_snli_ve.py ARGS` is `lavis-ext prepare snli_ve ARGS`, wherever it is called."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lavis_ext.cli import main

sys.exit(main(["prepare", "snli_ve", *sys.argv[1:]]))
