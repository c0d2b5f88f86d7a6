"""Labels of answers in the order of their classes, from Oscar's pickles or from the ordered JSON made of them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import IntegrityError
from lavis_ext.common.files import decode_json, read_errors, read_file, write_atomic
from lavis_ext.features.formats.restricted import load_plain

log = logging.getLogger(__name__)
WAY_OUT = "fetch it again, or name another file"


@dataclass(frozen=True)
class LabelVocabulary:
    """Class i has the label id `ids[i]` and the text `answers[i]`; a checkpoint's classifier has this very order."""

    ids: list[int]
    answers: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def classes(self) -> dict[int, int]:
        """Label id → class; of an id that is there twice, the last (as in upstream's reader)."""
        return {label: number for number, label in enumerate(self.ids)}

    def digest(self) -> str:
        """SHA-256 over ids and answers in their order: equal for vocabularies whose classifiers fit each other."""
        text = json.dumps([self.ids, self.answers], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def records(self) -> list[dict[str, Any]]:
        """`[{"id", "answer"}, …]` in class order, as it is kept."""
        return [{"id": label, "answer": text} for label, text in zip(self.ids, self.answers, strict=True)]


def read_labels(path: Path, answers: Path | None = None, keep: Path | None = None) -> LabelVocabulary:
    """The vocabulary in `path`: `[{"id", "answer"}]` as JSON, or Oscar's `trainval_ans2label.pkl`.

    Classes of the pickle are the values of its dict in the order in which they were put in, not of their numbers; the
    text of a class is `label2ans[id]` of the second pickle (list or dict) where `answers` names it, else the dict's
    key. `keep` gets the JSON. Raises UnsafeError for a pickle that is more than data, IntegrityError, DiskError.
    """
    if path.suffix == ".json":
        return _of_records(_json(path), path)
    known = _plain(path)
    if not isinstance(known, dict) or not all(_is_pair(key, value) for key, value in known.items()):
        raise IntegrityError(str(path), "is no dict from answers to label ids", WAY_OUT)
    texts = list(known) if answers is None else _texts(list(known.values()), answers)
    found = LabelVocabulary(list(known.values()), texts)
    if keep is not None:
        _keep(found, path, keep)
    return found


def _is_pair(key: Any, value: Any) -> bool:
    return isinstance(key, str) and type(value) is int


def _texts(ids: Sequence[int], path: Path) -> list[str]:
    """The answer of each label id; `label2ans` is a list (VQA) or a dict (GQA)."""
    table = _plain(path)
    if not isinstance(table, (list, dict)):
        raise IntegrityError(str(path), "is neither a list nor a dict of answers", WAY_OUT)
    by_id: Mapping[Any, Any] = table if isinstance(table, dict) else dict(enumerate(table))
    texts = [by_id.get(label, by_id.get(str(label))) for label in ids]
    lacking = next((label for label, text in zip(ids, texts, strict=True) if not isinstance(text, str)), None)
    if lacking is not None:
        raise IntegrityError(str(path), f"has no answer for label id {lacking}", "name the pair that belongs together")
    return [str(text) for text in texts]


def _of_records(value: Any, path: Path) -> LabelVocabulary:
    rows = value if isinstance(value, list) else []
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or type(row.get("id")) is not int or not isinstance(row.get("answer"), str):
            raise IntegrityError(f"{path} record {number}", 'is not {"id": number, "answer": text}', WAY_OUT)
    if not rows:
        raise IntegrityError(str(path), "holds no labels", WAY_OUT)
    return LabelVocabulary([row["id"] for row in rows], [row["answer"] for row in rows])


def _json(path: Path) -> Any:
    with read_errors(path):
        data = read_file(path)
    try:
        return decode_json(data)
    except ValueError as error:
        raise IntegrityError(str(path), f"cannot be read: {error}", WAY_OUT) from error


def _plain(path: Path) -> Any:
    with read_errors(path):
        data = read_file(path)
    return load_plain(data, str(path))


def _keep(found: LabelVocabulary, path: Path, keep: Path) -> None:
    """Write the ordered JSON to `keep`; later runs read the pickle again, so that a changed one is noticed."""
    text = json.dumps(found.records(), ensure_ascii=False, indent=0) + "\n"
    try:
        if keep.is_file() and keep.read_bytes() == text.encode():
            return
        write_atomic(keep, text)
    except OSError as error:
        log.warning("%s: the ordered copy cannot be written: %s", keep, error.strerror or error)
        return
    log.info("%s: %d labels, written in their order to %s", path, len(found), keep)
