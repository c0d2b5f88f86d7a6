"""`python -m lavis_ext VERB` is `lavis-ext VERB`."""

import sys

from lavis_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
