"""`python -m studies NAME [--seeds N] [--jobs N] [--out DIR]`, or `--all`: `lavis-ext demo` for studies."""

from __future__ import annotations

import sys

from lavis_ext.cli import main
from studies.study import study_files

if __name__ == "__main__":
    words = sys.argv[1:]
    if not words:
        sys.stderr.write(f"{__doc__}\nstudies: {', '.join(sorted(study_files()))}\n")
        sys.exit(2)
    sys.exit(main(["demo", *words] if words[0].startswith("-") else ["demo", "--study", *words]))
