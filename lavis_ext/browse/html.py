"""One HTML page with nothing from outside: the frame, the style sheet, and the small parts that pages are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

FRAME = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
"""
)


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document; `parts` are HTML, `title` is text. Its policy forbids scripts and outside sources."""
    style = files("lavis_ext.browse").joinpath("templates/style.css").read_text(encoding="utf-8")
    return FRAME.substitute(title=escape(title), style=style, body="\n".join(part for part in parts if part))


def section(title: str, content: str, note: str = "") -> str:
    """A titled section; "" where there is no content."""
    if not content:
        return ""
    aside = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{aside}{content}</section>"


def badge(text: str, kind: str = "") -> str:
    """A small label; `kind` is "", "good", "warn" or "bad"."""
    return f'<span class="badge {kind}">{escape(text)}</span>'


def tile(name: str, value: str, hint: str = "") -> str:
    """One number with its name, and what it is of."""
    small = f'<span class="hint">{escape(hint)}</span>' if hint else ""
    return f'<div class="tile"><span class="name">{escape(name)}</span><strong>{escape(value)}</strong>{small}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], marked: int = -1) -> str:
    """A table of text cells, the first column as row heads; `marked` is the row to set off."""
    if not rows:
        return ""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(_row(cells, index == marked) for index, cells in enumerate(rows))
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(cells: Sequence[str], marked: bool) -> str:
    first, rest = escape(cells[0]), "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:])
    return f'<tr{" class=marked" if marked else ""}><th scope="row">{first}</th>{rest}</tr>'


def folded(title: str, text: str) -> str:
    """Preformatted text behind a line that opens it."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
