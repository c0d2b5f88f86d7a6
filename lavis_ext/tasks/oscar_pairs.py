"""oscar_nlvr2: whether a sentence is true of two images, its accuracy, and its consistency over a sentence's pairs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis_ext.errors import ConfigError
from lavis_ext.files import disk_errors, write_atomic
from lavis_ext.metrics.answers import percent
from lavis_ext.registry import tasks
from lavis_ext.tasks.base import Row
from lavis_ext.tasks.oscar_answers import Classification, own_name
from lavis_ext.tasks.oscar_settings import OscarPairConfig

OFFICIAL = re.compile(r"(?P<split>[a-z0-9]+)-(?P<set>\d+)-(?P<pair>\d+)-(?P<sentence>\d+)")
"""NLVR2's identifiers: a set of images, one pair of it, one sentence about it."""
IMAGE = re.compile(r"(?:nlvr2_)?(?P<set>[a-z0-9]+-\d+)-\d+-img[01]")
"""Its images, under upstream's names: a set, a pair, left or right."""


@tasks.register("oscar_nlvr2", config=OscarPairConfig)
class OscarNlvr2(Classification):
    """NLVR2: class 1 is True; `{split}_results.csv` has a line `identifier,True|False` for each pair.

    `consistency` is the share of sentences that are judged rightly of all their pairs: where the identifiers are
    NLVR2's own, which name the sentence, or else the images are, and with their set the sentence itself.
    """

    sentences: Mapping[str, str] = {}
    """The sentence of each `instance_id`, as a name of its own."""

    def before_evaluation(self, split: str, datasets: Sequence[Any]) -> None:
        """Find which pairs are about one sentence."""
        self.sentences = {name: group for dataset in datasets for name, group in sentences_of(dataset)}

    def metrics(
        self, rows: Sequence[Row], answers: Sequence[str], split: str, datasets: Sequence[Any]
    ) -> dict[str, float]:
        """Per cent: `overall` (which picks the best), and `consistency` where the sentences are known."""
        found = super().metrics(rows, answers, split, datasets)
        groups: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            named = sentence_of(str(row["question_id"])) or self.sentences.get(row["instance_id"], "")
            groups[named].append(row["score"])
        return found if "" in groups else {**found, "consistency": percent([min(group) for group in groups.values()])}

    def told(self, row: Row, answers: Sequence[str]) -> Row:
        """The row with what was said of the pair."""
        return {"identifier": row["question_id"], "said": bool(row["class"]), "score": row["score"]}

    def submit(self, rows: Sequence[Row], answers: Sequence[str], out_dir: Path, split: str) -> None:
        """The csv of NLVR2's evaluation; raises ConfigError for an identifier that a line cannot hold."""
        names = [str(row["question_id"]) for row in rows]
        if broken := [name for name in names if set(name) & set(",\r\n")]:
            raise ConfigError("datasets", f"the identifier {broken[0]!r} has a comma or a line break", "rename it")
        path = out_dir / f"{split}_results.csv"
        lines = [f"{name},{bool(row['class'])}\n" for name, row in zip(names, rows, strict=True)]
        with disk_errors(path, "free some space, or set run.output_dir elsewhere"):
            write_atomic(path, "".join(lines))


def sentence_of(identifier: str) -> str:
    """What the pairs of one sentence share; "" where the identifier does not tell."""
    found = OFFICIAL.fullmatch(identifier)
    return f"{found['split']}-{found['set']}-{found['sentence']}" if found else ""


def sentences_of(dataset: Any) -> Iterator[tuple[str, str]]:
    """(instance id, set and sentence) of the pairs of a data set whose rows name NLVR2's images."""
    for index in range(len(dataset)) if hasattr(dataset, "row") else ():
        row = dataset.row(index)
        images = row.get("img_id")
        found = IMAGE.fullmatch(str(images.get("left"))) if isinstance(images, Mapping) else None
        if found:
            yield own_name(dataset.name, row["instance_id"]), f"{found['set']} {row.get('q')}"
