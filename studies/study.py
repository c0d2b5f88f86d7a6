"""A study as its YAML declares it: legs that train, figures that compare them, and the table that both make."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lavis_ext.common.config.check import check_run
from lavis_ext.common.config.decode import ConfigDecoder, read_yaml
from lavis_ext.common.config.resolve import config_roots
from lavis_ext.common.errors import ConfigError, LavisExtError, Problem, UsageError, nearest
from lavis_ext.common.wording import columns

NO_SCORE = 0.01
"""Below it a score is noise: ratios are taken to this instead."""
HEAD = ["figure", "mean ± spread", "seed by seed", "compared", "wanted", "holds"]
Values = dict[str, list[float]]
"""Values of a metric, one a seed, by `leg/metric`."""


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One run: a run file, and options over it; `{leg}` in one names the newest checkpoint of an earlier leg."""

    train: str
    options: list[str] = field(default_factory=list)

    @staticmethod
    def accept(value: Any) -> Any:
        """Options may be lists of options, so that one YAML anchor may hold several."""
        if not isinstance(value, Mapping) or not isinstance(value.get("options"), list):
            return value
        return {**value, "options": list(flat(value["options"]))}


def flat(items: Sequence[Any]) -> Iterator[Any]:
    """The leaves of nested lists."""
    for item in items:
        yield from flat(item) if isinstance(item, list) else [item]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table: `metric` of a leg, `test/CIDEr`, or `train/loss` for the mean over its last fifth.

    `times` is what it is divided by and `minus` what is taken from it: another leg's same metric, or a number; the
    bound is for the outcome.
    """

    name: str
    leg: str
    metric: str
    times: str | float | None = None
    minus: str | float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def base(self) -> str | float | None:
        """What it is compared with."""
        return self.minus if self.times is None else self.times

    def values(self, found: Values) -> list[float]:
        """The metric, seed by seed."""
        return found[f"{self.leg}/{self.metric}"]

    def compared(self, found: Values) -> list[float]:
        """The metric over or less its base, seed by seed; the metric itself without one."""
        values, base = self.values(found), self.base
        if base is None:
            return values
        bases = [base] * len(values) if isinstance(base, float) else found[f"{base}/{self.metric}"]
        pairs = zip(values, bases, strict=True)
        return [v - b if self.times is None else v / max(b, NO_SCORE) for v, b in pairs]

    @property
    def wanted(self) -> str:
        """The bound in words."""
        found = [("≥", self.at_least), ("≤", self.at_most)]
        return " ".join(f"{sign} {bound:g}" for sign, bound in found if bound is not None)

    def holds(self, found: Values) -> bool | None:
        """Whether the mean over the seeds keeps the bound; None without one."""
        middle = mean(self.compared(found))
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return (low <= middle <= high) if self.wanted else None


@dataclass(frozen=True, kw_only=True)
class Study:
    """What to prepare (`coco`, `oscar/base-vg-labels`), legs in the order in which they can run, and figures."""

    title: str
    prepare: list[str]
    legs: dict[str, Leg]
    figures: list[Figure]
    world: dict[str, int] = field(default_factory=dict)
    """Scenes of a split, where it is not the demo's number of them."""
    minutes: int = 0
    """What all of it takes on two cores with three seeds, about."""


@dataclass(frozen=True)
class Findings:
    """What a study found: the values of each figure's metric by seed."""

    name: str
    study: Study
    seeds: tuple[int, ...]
    values: Values

    def rows(self) -> list[list[str]]:
        """The table without its head."""
        return [self._row(figure) for figure in self.study.figures]

    def _row(self, figure: Figure) -> list[str]:
        values, kept = figure.values(self.values), figure.holds(self.values)
        sign = "× " if figure.times is not None else ""
        compared = "" if figure.base is None else f"{sign}{spread(figure.compared(self.values))}"
        holds = "" if kept is None else "yes" if kept else "no"
        return [figure.name, spread(values), " ".join(map(plain, values)), compared, figure.wanted, holds]

    def lines(self) -> list[str]:
        """For a person at a terminal."""
        return [f"{self.study.title}, seeds {self.seed_text}", *(f"  {row}" for row in columns([HEAD, *self.rows()]))]

    def markdown(self) -> str:
        """For a page: the same table, with how it was made."""
        head = f"`python -m studies {self.name} --seeds {len(self.seeds)}` (seeds {self.seed_text})"
        table = [HEAD, ["---"] * len(HEAD), *self.rows()]
        return "\n".join([f"## {self.study.title}", "", head, "", *(f"| {' | '.join(row)} |" for row in table)]) + "\n"

    def summary(self) -> dict[str, Any]:
        """For a program."""
        figures = [
            {"name": f.name, "values": f.values(self.values), "compared": f.compared(self.values)}
            | {"wanted": f.wanted, "holds": f.holds(self.values)}
            for f in self.study.figures
        ]
        return {"study": self.name, "seeds": list(self.seeds), "figures": figures}

    @property
    def seed_text(self) -> str:
        """`1, 2, 3`."""
        return ", ".join(map(str, self.seeds))


def plain(value: float) -> str:
    """A figure with as many places as a person reads."""
    size = abs(value)
    return f"{value:.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.3f}"


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation."""
    return plain(mean(values)) + (f" ± {plain(stdev(values))}" if len(values) > 1 else "")


def study_files() -> dict[str, Path]:
    """Name → YAML of the studies here and in the `studies/` of a user's folders of YAML, which go first."""
    folders = [Path(__file__).parent, *(root / "studies" for root in reversed(config_roots()))]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def load_study(name: str) -> Study:
    """The study of a name; raises UsageError for an unknown one and ConfigError for all that is wrong in its file."""
    files = study_files()
    if name not in files:
        raise UsageError(f"study '{name}'", "not known", nearest(name, files))
    return read_study(files[name])


def read_study(path: Path) -> Study:
    """The study of a file; raises ConfigError for all that is wrong in it."""
    tree, places = read_yaml(path)
    decoder = ConfigDecoder(places)
    study = decoder.build(Study, tree)
    if study is not None:
        decoder.problems += unknown_legs(study, path)
    decoder.close()
    if study is None:
        raise ConfigError(str(path), "is no study", "give it a title, prepare, legs and figures")
    return study


def study_problems(path: Path) -> Iterator[Problem]:
    """What is wrong with a study, and with the run that each of its legs asks for."""
    study = read_study(path)
    for name, leg in study.legs.items():
        options = [filled(option, dict.fromkeys(study.legs, "CHECKPOINT")) for option in leg.options]
        try:
            found = check_run(leg.train, options)
        except LavisExtError as error:
            found = list(error.problems)
        yield from (Problem(f"{path} legs.{name}: {p.where}", p.what, p.way_out) for p in found)


def unknown_legs(study: Study, path: Path) -> list[Problem]:
    """Legs that are named and are not there, or not yet."""
    names = list(study.legs)
    named = [(f"legs.{n}", used, names[:i]) for i, n in enumerate(names) for used in needed_by(study.legs[n], names)]
    for figure in study.figures:
        bases = [base for base in (figure.leg, figure.base) if isinstance(base, str)]
        named += [(f"figures '{figure.name}'", base, names) for base in bases]
    return [
        Problem(f"{path} {where}", f"leg '{used}' is not there before it", nearest(used, known))
        for where, used, known in named
        if used not in known
    ]


def needed_by(leg: Leg, names: Sequence[str]) -> list[str]:
    """The legs whose checkpoints a leg starts from."""
    return [name for name in names if any(f"{{{name}}}" in option for option in leg.options)]


def filled(option: str, found: Mapping[str, str]) -> str:
    """An option with `{leg}` replaced by that leg's checkpoint; other braces stay."""
    for name, path in found.items():
        option = option.replace(f"{{{name}}}", path)
    return option
