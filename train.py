"""`python train.py --cfg-path FILE [--options key=value …]` is `lavis-ext train …`."""

import sys

from lavis_ext.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
