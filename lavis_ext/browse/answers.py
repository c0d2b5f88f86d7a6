"""How answers fared by kind: tables of accuracy, what kind was said for what kind, and the frequent mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lavis_ext.browse.html import section, table
from lavis_ext.metrics.breakdown import KINDS


def answers_section(found: Mapping[str, Any]) -> str:
    """A section from the breakdown that a task left; "" if it holds nothing."""
    by_answer = accuracy_table("answer type", rows_of(found, "answer_types"))
    by_question = accuracy_table("question begins", rows_of(found, "question_types"))
    kinds = confusion_table(found.get("confusion"))
    mistakes = mistake_table(rows_of(found, "mistakes"))
    titled = [
        ("By answer type", by_answer),
        ("Kind of answer given (columns) for the kind of the truth (rows)", kinds),
        ("By question", by_question),
        ("Frequent mistakes", mistakes),
    ]
    parts = "".join(f"<div><h3>{title}</h3>{body}</div>" for title, body in titled if body)
    note = "A question is of the kind of the answer that most people gave; the share in the second table is of the row."
    return section(f"Answers on {found.get('split', '')}", f'<div class="columns">{parts}</div>' if parts else "", note)


def rows_of(found: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The objects of a list of the breakdown."""
    return [row for row in found.get(key) or [] if isinstance(row, Mapping)]


def accuracy_table(head: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Name, questions and accuracy of each group, with a bar for the accuracy."""
    cells = [_accuracy_row(row) for row in rows]
    if not cells:
        return ""
    top = f'<tr><th scope="col">{escape(head)}</th><th scope="col">questions</th><th scope="col">accuracy</th></tr>'
    return f'<div class="scroll"><table><thead>{top}</thead><tbody>{"".join(cells)}</tbody></table></div>'


def _accuracy_row(row: Mapping[str, Any]) -> str:
    accuracy = _number(row.get("accuracy"))
    name, count = escape(str(row.get("name", ""))), f"{int(_number(row.get('questions'))):,}"
    shade = f'<td class="heat" style="--h:{min(max(accuracy, 0), 100):.0f}%">{accuracy:.2f}</td>'
    return f'<tr><th scope="row">{name}</th><td>{count}</td>{shade}</tr>'


def confusion_table(confusion: Any) -> str:
    """Questions by the kind of the truth (rows) and of what was said (columns), shaded by the share of the row."""
    if not isinstance(confusion, Mapping) or not confusion:
        return ""
    counted = {str(name): row for name, row in confusion.items() if isinstance(row, Mapping)}
    columns = list(dict.fromkeys([*KINDS, *(str(kind) for row in counted.values() for kind in row)]))
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in ["truth", *columns])
    body = "".join(_confusion_row(name, row, columns) for name, row in counted.items())
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _confusion_row(name: str, row: Mapping[str, Any], columns: Sequence[str]) -> str:
    counts = [_number(row.get(column)) for column in columns]
    total = sum(counts) or 1.0
    cells = "".join(_share(count, count / total) for count in counts)
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def _share(count: float, share: float) -> str:
    told = f'{count:,.0f} <span class="share">{share:.0%}</span>' if count else "–"
    return f'<td class="heat" style="--h:{share:.0%}">{told}</td>'


def mistake_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The answers that scored nothing, the most frequent first."""
    cells = [[str(row.get(key, "")) or "(nothing)" for key in ("truth", "said", "type", "questions")] for row in rows]
    return (
        f'<div class="text">{table(["people said", "the model said", "answer type", "questions"], cells)}</div>'
        if cells
        else ""
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0
