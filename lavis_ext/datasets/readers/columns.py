"""Which column of rows holds the picture, the caption, the question: by the names that people use, then by values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from lavis_ext.common.errors import Problem
from lavis_ext.datasets.readers.packed import PACKED_NAME
from lavis_ext.datasets.readers.tables import PICTURE, sign_of

Row = Mapping[str, Any]
PROMPTS = ("prompt", "input", "user", "human")
"""Columns that are questions where one of `REPLIES` is there, as in data for instructions; else texts."""
REPLIES = ("completion", "output", "reply", "assistant", "gpt", "chosen")
NAMES: Mapping[str, tuple[str, ...]] = {
    "image_key": (
        *("image", "image_path", "img", "img_path", "image_file", "image_name", "file_name", "filename", "filepath"),
        *("file", "path", "picture", "photo", "pic", "images", "image_url", "url", "jpg", "png", "image_urls"),
    ),
    "caption_key": (
        *("caption", "captions", "text", "description", "sentence", "sentences", "title", "alt_text", "alt", "raw"),
        *("comment", "prompt", "blip_caption", "top_caption", "text_input", "output", "objects", "data"),
    ),
    "question_key": ("question", "questions", "query", "q", "question_text", "instruction", *PROMPTS),
    "answer_key": ("answer", "answers", "a", "response", "multiple_choice_answer", "direct_answers", *REPLIES, "label"),
    "text_key": ("sentence", "text", "caption", "hypothesis", "statement"),
    "label_key": ("label", "labels", "class", "category", "target", "gold_label"),
    "split_key": ("split", "subset", "fold", "partition"),
    "image_id": ("image_id", "img_id", "imgid", "id"),
}
"""Argument of a shape → names of the column that it may mean, the likeliest first."""
LOOKED_AT = 50


def find_column(argument: str, rows: Sequence[Row], used: Sequence[str] = ()) -> str | None:
    """The column that an argument means in these rows, not one of `used`; None where none looks like it."""
    some = rows[:LOOKED_AT]
    names = [name for name in dict.fromkeys(key for row in some for key in row) if name not in used]
    fits = FITS.get(argument, _is_text)
    good = [name for name in names if all(fits(row[name]) for row in some if row.get(name) is not None)]
    good = [name for name in good if any(row.get(name) is not None for row in some)]
    lower = {name.lower().replace(" ", "_").replace("-", "_"): name for name in reversed(good)}
    found = next((lower[name] for name in NAMES.get(argument, ()) if name in lower), None)
    if argument == "image_key":
        pictures = [name for name in good if any(_is_picture(row.get(name)) for row in some)]
        return found if found in pictures or not pictures else pictures[0]
    if argument == "caption_key" and found is None:
        words = {name: sum(str(row.get(name, "")).count(" ") for row in some) for name in good}
        words = {name: count for name, count in words.items() if count >= 2 * len(some)}
        return max(words, key=words.__getitem__, default=None)
    return found


def _is_text(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, str) for one in value)
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _is_answer(value: Any) -> bool:
    records = (
        isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "answer" in one for one in value)
    )
    return records or _is_text(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _is_picture(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, str) and bool(PICTURE.search(PurePosixPath(first).name) or PACKED_NAME.match(first))


FITS: Mapping[str, Callable[[Any], bool]] = {"image_key": _is_name, "answer_key": _is_answer}
"""What values of a column must be like, for arguments that take other than texts and numbers."""


def missing_columns(where: str, wanted: Mapping[str, str], rows: Sequence[Row], known: Sequence[str]) -> list[Problem]:
    """A problem for each column of `wanted` (argument → column) that no row has, with the one that may be meant."""
    found = []
    for argument, column in wanted.items():
        if column in known:
            continue
        what = f"no column `{column}`; there {_listed(known)}"
        meant = find_column(argument, rows, [other for other in wanted.values() if other in known])
        sign = sign_of(known[0]) if len(known) == 1 and argument != "image_id" else ""
        if sign:
            way_out = f"its columns are split by {sign!r}: write `args: {{delimiter: {sign!r}}}`"
        elif argument == "image_id":
            way_out = "`args: {image_id: raw}` keeps the ids of rows: leave it out, or give each row an `image_id`"
        elif meant is not None:
            way_out = f"did you mean `args: {{{argument}: {meant}}}`?"
        else:
            way_out = f"name the column under `args: {{{argument}: …}}`"
        found.append(Problem(where, what, way_out))
        if sign:
            break  # with its columns apart, the others may be there
    return found


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:12])
    return f"{'is' if len(names) == 1 else 'are'} {shown or 'none'}{' …' if len(names) > 12 else ''}"
