"""`python prepare_data/download_flickr30k.py ARGS` is `lavis-ext prepare flickr30k ARGS`, wherever it is called."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lavis_ext.cli import main

sys.exit(main(["prepare", "flickr30k", *sys.argv[1:]]))
