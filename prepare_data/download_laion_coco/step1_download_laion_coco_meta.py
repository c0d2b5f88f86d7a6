"""The metadata of Laion-COCO: `lavis-ext prepare laion_coco --metadata-only ARGS` (`--source` names other places)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lavis_ext.cli import main

sys.exit(main(["prepare", "laion_coco", "--metadata-only", *sys.argv[1:]]))
