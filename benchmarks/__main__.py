"""Everything beside its peers, in one table: `python -m benchmarks [--quick] [--only P1,P4] [--json] [--publish]`.

Contenders of an item run in turns, round after round, each in a process of its own; medians are compared, with the
least and the most. `--quick` shows in minutes that all of it runs, on inputs too small for a figure to mean anything.
`--prepare` installs the peers beforehand, so that a run installs nothing. A finished row is kept at once: `--continue`
takes those of the same commit, machine and pictures, and measures the others. `--publish` writes the table into
README.md, from a quiet machine and a clean checkout only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from benchmarks import peers
from benchmarks.harness import Result, Scene, keep, kept_rows, measure
from benchmarks.items import ITEMS
from benchmarks.machine import busy, commit, machine, settled
from benchmarks.page import PAGE, as_json, listed, publish, table

SETTLING = 240
"""Seconds that `--publish` waits for the load of what ended just before."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for and print it; 0, 1 where `--publish` or `--prepare` was in vain, 2 for a wrong flag."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round of small inputs: does it run?")
    parser.add_argument("--only", default="", metavar="P1,P4", help="these items (P3 is P3b too)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--publish", action="store_true", help=f"write the table into {PAGE.name}")
    parser.add_argument("--list", action="store_true", help="the items, and no measuring")
    parser.add_argument("--prepare", action="store_true", help="install the peers, and no measuring")
    parser.add_argument("--continue", action="store_true", dest="go_on", help="take the rows that are finished")
    parser.add_argument("--minutes", type=float, default=0, help="after so many an item has one round only")
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of photographs (default: drawn pictures)")
    parser.add_argument("--workers", type=int, default=2, help="threads or processes of each loader (default: 2)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to work (default: a temporary folder)")
    args = parser.parse_args(argv)
    only = [key.strip().upper() for key in args.only.split(",") if key.strip()]
    chosen = [item for item in ITEMS if not only or item.key.upper() in only or item.key.rstrip("b") in only]
    if unknown := [key for key in only if not any(key in (i.key.upper(), i.key.rstrip("b")) for i in ITEMS)]:
        parser.error(f"no item {', '.join(unknown)}; there are {', '.join(item.key for item in ITEMS)}")
    if args.images and not any(args.images.glob("*.jpg")):
        parser.error(f"{args.images} holds no .jpg")

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if args.list:
        print(json.dumps([{"item": i.key, "title": i.title} for i in chosen]) if args.json else listed(chosen))
        return 0
    if args.prepare:
        failed = peers.prepare(list(dict.fromkeys(name for item in chosen for name in item.peers)), tell)
        return 1 if failed else 0
    head = {"machine": machine(), "commit": commit(), "images": "photographs" if args.images else "drawn"}
    rows = rows_file(head, args.workers)
    kept = {} if args.quick else kept_rows(rows, ITEMS)
    todo = [i for i in chosen if not (args.go_on and i.key in kept and kept[i.key].finished)]
    refused: list[str] = []
    if args.publish:
        lacking = [item.key for item in ITEMS if item not in todo and item.key not in kept]
        refused += ["--quick measures nothing"] if args.quick else []
        refused += [f"nothing was measured yet of {', '.join(lacking)}"] if lacking else []
        refused += ["the checkout has changes that are not committed"] if "+" in head["commit"] else []
        refused = refused or (settled(SETTLING) if todo else [])
    if refused:
        print(f"not published: {'; '.join(refused)}", file=sys.stderr)
        return 1
    found = {**head, "date": time.strftime("%Y-%m-%d"), "busy": busy() if todo else [], "quick": args.quick}
    until = time.monotonic() + args.minutes * 60 if args.minutes else float("inf")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        scene = Scene(Path(folder), args.quick, args.images and args.images.absolute(), args.workers, until)
        new: dict[str, Result] = {}
        for item in todo:
            new[item.key] = measure(item, scene, tell)
            if not args.quick:
                keep(rows, new[item.key])
    joined = {**(kept if args.publish or args.go_on else {}), **new}
    asked = ITEMS if args.publish else chosen
    results = [joined[item.key] for item in asked if item.key in joined]
    print(json.dumps(as_json(found, results), indent=1) if args.json else table(found, results))
    if args.publish:
        publish(found, results)
    return 0


def rows_file(head: dict[str, str], workers: int) -> Path:
    """Where the rows of one commit, machine and kind of pictures are kept."""
    told = sha256(json.dumps([head, workers]).encode()).hexdigest()[:8]
    return peers.cache() / "rows" / f"{head['commit'] or 'unknown'}-{told}.json"


if __name__ == "__main__":
    sys.exit(main())
