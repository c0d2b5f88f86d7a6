"""`python evaluate.py --cfg-path FILE [--options key=value …]` is `lavis-ext evaluate …`."""

import sys

from lavis_ext.cli import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
