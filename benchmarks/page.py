"""The table as people read it, and its place in README.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.harness import HERE, Item, Result, short
from benchmarks.plot import drawing, growth
from benchmarks.prepared_coco import PICTURES

PAGE = HERE / "README.md"
BEGIN, END = "<!-- the last published table -->\n", "<!-- end of the table -->\n"


def listed(chosen: Sequence[Item]) -> str:
    """A line an item, and one a target."""
    return "\n".join(
        line for item in chosen for line in (f"{item.key:4} {item.title}", *(f"       {t.says}" for t in item.targets))
    )


def as_json(found: dict[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """The run as one object."""
    return {**found, "items": [result.as_json() for result in results]}


def table(found: dict[str, Any], results: Sequence[Result]) -> str:
    """The run as Markdown: each target beside its figure, then every contender."""
    told = [(result, result.as_json()) for result in results]
    head = f"{found['machine']}; commit {found['commit'] or 'unknown'}, {found['date']}; {found['images']}"
    lines = [f"{head if found['images'] == 'photographs' else head + ' pictures'}.", ""]
    if found["busy"]:
        lines += [f"**A busy machine** ({'; '.join(found['busy'])}): only CPU time and memory mean anything.", ""]
    if found["quick"]:
        lines += ["**A quick run**: inputs too small for any figure to be relied on.", ""]
    if disturbed := [f"{result.item.key} {result.share:.0%}" for result in results if result.disturbed]:
        lines += [f"**No verdict** where others had much of the cores meanwhile: {', '.join(disturbed)}.", ""]
    lines += ["| | work | to reach | measured | spread | reached |", "|---|---|---|---|---|---|"]
    for result, one in told:
        why = result.missing.get("all", "")
        for target in one["targets"]:
            value = target["value"]
            shown = f"not measured{': ' + why if why else ''} | "
            if value:
                shown = f"{short(value['median'])} | {short(value['least'])}–{short(value['most'])}"
            said = {True: "yes", False: "no", None: ""}[target["reached"]]
            lines.append(f"| {one['item']} | {one['title']} | {target['says']} | {cell(shown)} | {said} |")
    lines += ["", "| | contender | a second | wall s | first s | CPU s | MB |", "|---|---|---|---|---|---|---|"]
    for result, one in told:
        for name, figures in one["runs"].items():
            keys = ("rate", "wall", "first", "cpu", "memory")
            cells = [short(figures[key]["median"]) if key in figures else "" for key in keys]
            lines.append(f"| {result.item.key} | {name} | {' | '.join(cells)} |")
        for name, why in result.missing.items():
            lines.append(f"| {result.item.key} | {name} | not measured: {why.replace('|', '/')} | | | | |")
    minutes = " · ".join(f"{result.item.key} {result.seconds / 60:.1f}" for result in results)
    whole = sum(result.seconds for result in results) / 60
    return "\n".join([*lines, "", f"Minutes: {minutes}; {whole:.0f} in all.", ""])


def cell(text: str) -> str:
    """Two cells, of which the first may be an error's text."""
    first, _, last = text.rpartition(" | ")
    return f"{first.replace('|', '/')} | {last}"


def publish(found: dict[str, Any], results: Sequence[Result]) -> None:
    """Write the table into its page, and the plot of P12 beside it where that was measured."""
    shown = table(found, results)
    runs = next((result.runs for result in results if result.item.key == "P12"), {})
    panels = {title: growth(runs, figure, PICTURES) for title, figure in PANELS.items()}
    if all(panels.values()):
        GROWTH.parent.mkdir(exist_ok=True)
        GROWTH.write_text(drawing(panels, SAYS))
        shown += f"\n![{SAYS}](../docs/pictures/{GROWTH.name})\n"
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{shown}{END}{rest.partition(END)[2]}")


GROWTH = HERE.parent / "docs" / "pictures" / "growth.svg"
PANELS = {"seconds": "wall", "MB of memory": "memory"}
SAYS = "Seconds and memory of preparing, verifying and opening COCO at a hundredth, a tenth and all of its size"
