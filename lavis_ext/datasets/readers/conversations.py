"""Conversations as files have them, LLaVA's `conversations` and OpenAI's `messages`, in one form.

LLaVA: https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md, whose `<image>` marks the place of a
picture. OpenAI: https://platform.openai.com/docs/api-reference/chat, whose contents may be lists of parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from lavis_ext.common.errors import IntegrityError
from lavis_ext.common.files import decode_json
from lavis_ext.datasets.readers.folders import DerivedRows
from lavis_ext.datasets.readers.tables import REFETCH

Row = dict[str, Any]
Turn = dict[str, str]
"""`role`, one of user, assistant and system, and `content`, in which `<image>` stands where a picture goes."""
IMAGE = "<image>"
HELD = ("conversations", "messages", "conversation")
"""Keys under which a row has its turns."""
FAULT = "unreadable"
"""The key under which a row says why its turns cannot be used."""
ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
PICTURES = ("image", "images")


@dataclass(frozen=True)
class Conversations(DerivedRows):
    """The rows of a source, whole (`turns`, `image_key` a list of names) or taken apart, a row a question.

    A record of another kind stays as it is; one whose turns cannot be used says why under `unreadable`.
    """

    how: Literal["whole", "turns"] = "whole"
    image_key: str = "image"

    @property
    def name(self) -> str:
        """The file name of the Arrow copy, without its suffix."""
        if self.how == "turns":
            return f"{self.source.name}.turns"
        named = "" if self.image_key == "image" else f"-{self.image_key}"
        return f"{self.source.name}.conversations-2{named}"  # copies without a number lack a `system` beside the turns

    def parse(self) -> list[Row]:
        """All rows; raises IntegrityError."""
        rows = self.source_rows()
        if self.how == "turns":
            return [one for number, row in enumerate(rows) for one in _taken_apart(row, number, f"{self} record")]
        return [whole(row, self.image_key) for row in rows]


def whole(row: Row, image_key: str = "image") -> Row:
    """A record with `conversations` in one form, and the names of its pictures as a list under `image_key`."""
    held = first_given(row, HELD)
    if held is None:
        return row
    key = first_given(row, (image_key, *PICTURES)) or image_key
    system = row.get("system") if isinstance(row.get("system"), str) else None  # ShareGPT's, beside the turns
    rest = {name: value for name, value in row.items() if name not in (held, key) and (name != "system" or not system)}
    listed = row.get(key)
    try:
        names = [_name(one) for one in (listed if isinstance(listed, list) else [] if listed is None else [listed])]
        turns, named = conversation_of(row[held], [name for name in names if name], system or "")
    except ValueError as error:
        return {**rest, FAULT: str(error)}
    return {**rest, "conversations": turns, **({image_key: named} if named else {})}


def first_given(row: Row, keys: Sequence[str]) -> str | None:
    """The first of `keys` under which a row has more than nothing, else under which it has an empty text or list."""
    held = [key for key in keys if row.get(key) is not None]
    return next((key for key in held if row[key] not in ("", [])), next(iter(held), None))


def conversation_of(said: Any, names: list[str], system: str = "") -> tuple[list[Turn], list[str]]:
    """Turns as files have them, and the pictures of their record → turns in one form, and all pictures in order.

    `system` is what a record tells the model beside its turns.

    What stands before the first turn of a user is left out (LLaVA's rule), turns of one role in a row are one, and
    pictures whose place no `<image>` marks stand before all else. Raises ValueError that says why it cannot be read.
    """
    said = _turns_in(said) if isinstance(said, str) else said
    if not isinstance(said, list) or not all(isinstance(one, Mapping) for one in said):
        raise ValueError("the turns are no list of objects with `from` and `value`, or `role` and `content`")
    turns: list[Turn] = []
    places: list[str | None] = []
    if system.strip():
        said = [{"role": "system", "content": system}, *said]
    for number, one in enumerate(said, start=-1 if system.strip() else 0):
        # a table has both names as columns, one of them empty
        speaker, given = (_either(one, *names) for names in (("from", "role"), ("value", "content")))
        role = ROLES.get(str(speaker).strip().lower())
        if role is None:
            raise ValueError(f"turn {number} is of '{speaker}', no user, assistant or system")
        if role == "system" and (given is None or given == [] or (isinstance(given, str) and not given.strip())):
            continue
        if role == "assistant" and not any(turn["role"] == "user" for turn in turns):
            continue
        if role == "system" and any(turn["role"] != role for turn in turns):
            raise ValueError(f"turn {number} is the system's, which stands first or not at all")
        content, shown = _content(given, number)
        if shown and role != "user":
            raise ValueError(f"turn {number} of the {role} holds a picture, which only a user's may")
        places += shown
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n{content}"
        else:
            turns.append({"role": role, "content": content})
    asked = next((turn for turn in turns if turn["role"] == "user"), None)
    if asked is None:
        raise ValueError("no turn is of a user")
    if not places and names:
        places = [None] * len(names)
        asked["content"] = f"{IMAGE}\n" * len(names) + asked["content"]
    unnamed = sum(place is None for place in places)
    if unnamed != len(names):
        raise ValueError(f"{len(names)} pictures are named, and {unnamed} `{IMAGE}` stand in the turns")
    left = iter(names)
    return turns, [next(left) if place is None else place for place in places]


def _turns_in(text: str) -> Any:
    """The turns of a column of JSON; None for a text that is none."""
    try:
        return decode_json(text)
    except ValueError:
        return None


def _either(turn: Mapping[str, Any], one: str, other: str) -> Any:
    return turn.get(other) if turn.get(one) is None else turn[one]


def _content(value: Any, number: int) -> tuple[str, list[str | None]]:
    """The text of a turn, and for each `<image>` in it the name that stands there, or None."""
    parts = [_part(one, number) for one in (value if isinstance(value, list) else [value])]
    text = "\n".join(part for part, _ in parts).strip()
    if not text:
        raise ValueError(f"turn {number} is empty")
    return text, [place for _, some in parts for place in some]


def _part(part: Any, number: int) -> tuple[str, list[str | None]]:
    if isinstance(part, str):
        return part.strip(), [None] * part.count(IMAGE)
    kind = str(part.get("type", "text")) if isinstance(part, Mapping) else "nothing"
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return part["text"].strip(), [None] * part["text"].count(IMAGE)
    if kind in ("image", "image_url", "input_image"):
        given = next((part[key] for key in ("image_url", "image", "url", "path") if part.get(key) is not None), None)
        return IMAGE, [_name(given)]
    raise ValueError(f"turn {number} holds a part that is no text and no picture ({kind})")


def _name(given: Any) -> str | None:
    """The name of a picture; raises ValueError for one that is written into the file."""
    if isinstance(given, Mapping):
        held = given if any(value is not None for value in given.values()) else None
        given = next((given[key] for key in ("url", "path", "file_name") if given.get(key)), held)
    if given is None:
        return None
    if not isinstance(given, str | int) or str(given).startswith("data:"):
        raise ValueError("a picture is written into the turns: save it as a file, and name that")
    return str(given).removeprefix("file://")


def _taken_apart(row: Row, number: int, where: str) -> Iterator[Row]:
    """A row a question, with `answer`, `question_id`, `image`; those without a picture are left out."""
    image = row.get("image")
    listed = image if isinstance(image, list) else []
    more = {"image": listed[0], "images": listed} if listed else {"image": image}
    for turn, (asked, said) in enumerate(_questions(row, f"{where} {number}")):
        if more["image"]:
            yield {"question_id": f"{row.get('id', number)}_{turn}", "question": asked, "answer": said, **more}


def _questions(row: Row, where: str) -> list[tuple[str, str]]:
    """The questions of a conversation, each with its answer, without LLaVA's `<image>`; raises IntegrityError."""
    said = row.get("conversations")
    if not isinstance(said, list) or not all(isinstance(one, dict) and "value" in one for one in said):
        raise IntegrityError(where, "has no list of `from` and `value` under `conversations`", REFETCH)
    texts = [(str(one.get("from")), str(one["value"]).replace(IMAGE, " ").strip()) for one in said]
    return [
        (a, b) for (who, a), (other, b) in pairwise(texts) if who in ("human", "user") and other in ("gpt", "assistant")
    ]
