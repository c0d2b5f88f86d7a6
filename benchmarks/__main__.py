"""Everything beside its peers, in one table: `python -m benchmarks [--quick] [--only P1,P4] [--json] [--publish]`.

Contenders of an item run in turns, round after round, each in a process of its own; medians are compared, with the
least and the most. `--quick` shows in minutes that all of it runs, on inputs too small for a figure to mean anything.
`--publish` writes the table into README.md, from a quiet machine and a clean checkout only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import HERE, Result, Scene, Watch, commit, machine, measure, short
from benchmarks.items import ITEMS

PAGE = HERE / "README.md"
BEGIN, END = "<!-- the last published table -->\n", "<!-- end of the table -->\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for and print it; 0, 1 where `--publish` was refused, 2 for a wrong flag."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round of small inputs: does it run?")
    parser.add_argument("--only", default="", metavar="P1,P4", help="these items (P3 is P3b too)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--publish", action="store_true", help=f"write the table into {PAGE.name}")
    parser.add_argument("--list", action="store_true", help="the items, and no measuring")
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
    if args.list:
        print(json.dumps([{"item": i.key, "title": i.title} for i in chosen]) if args.json else listed(chosen))
        return 0
    watch = Watch()
    refused = [*watch.reasons(), *unfit(args, only)] if args.publish else []
    if refused:
        print(f"not published: {'; '.join(refused)}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        scene = Scene(Path(folder), args.quick, args.images and args.images.absolute(), args.workers)
        results = [measure(item, scene, lambda text: print(text, file=sys.stderr, flush=True)) for item in chosen]
    busy = watch.reasons()
    found = {
        **{"machine": machine(), "commit": commit(), "date": time.strftime("%Y-%m-%d"), "load": round(watch.load, 2)},
        **{"busy": busy, "quick": args.quick, "images": "photographs" if args.images else "drawn"},
        "items": [result.as_json() for result in results],
    }
    page = table(found, results)
    print(json.dumps(found, indent=1) if args.json else page)
    if args.publish and busy:
        print(f"not published: {'; '.join(busy)}", file=sys.stderr)
        return 1
    if args.publish:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}{page}{END}{rest.partition(END)[2]}")
    return 0


def unfit(args: argparse.Namespace, only: Sequence[str]) -> list[str]:
    """Why a run is no table to publish, whatever the machine does."""
    found = ["--quick measures nothing"] if args.quick else []
    found += ["--only is not the whole table"] if only else []
    return found + (["the checkout has changes that are not committed"] if commit().endswith("+") else [])


def listed(chosen: Sequence[Any]) -> str:
    """A line an item, and one a target."""
    return "\n".join(
        line for item in chosen for line in (f"{item.key:4} {item.title}", *(f"       {t.says}" for t in item.targets))
    )


def table(found: dict[str, Any], results: Sequence[Result]) -> str:
    """The run as Markdown: each target beside its figure, then every contender."""
    head = (
        f"{found['machine']}; commit {found['commit'] or 'unknown'}, {found['date']}, load {found['load']} before the "
    )
    lines = [f"{head}start; {found['images']} pictures.", ""]
    if found["busy"]:
        lines += [f"**A busy machine** ({'; '.join(found['busy'])}): only CPU time and memory mean anything.", ""]
    if found["quick"]:
        lines += ["**A quick run**: inputs too small for any figure to be relied on.", ""]
    lines += ["| | work | to reach | measured | spread | reached |", "|---|---|---|---|---|---|"]
    for one in found["items"]:
        for target in one["targets"] or [{"says": "", "value": None, "reached": None}]:
            value = target["value"]
            shown = (
                f"{short(value['median'])} | {short(value['least'])}–{short(value['most'])}"
                if value
                else "not measured | "
            )
            said = {True: "yes", False: "no", None: ""}[target["reached"]]
            lines.append(f"| {one['item']} | {one['title']} | {target['says']} | {shown} | {said} |")
    lines += ["", "| | contender | a second | wall s | first s | CPU s | MB |", "|---|---|---|---|---|---|---|"]
    for result, one in zip(results, found["items"], strict=True):
        for name, figures in one["runs"].items():
            keys = ("rate", "wall", "first", "cpu", "memory")
            cells = [short(figures[key]["median"]) if key in figures else "" for key in keys]
            lines.append(f"| {result.item.key} | {name} | {' | '.join(cells)} |")
        for name, why in one["missing"].items():
            lines.append(f"| {result.item.key} | {name} | not measured: {why.replace('|', '/')} | | | | |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
