"""`report.html` of a run: settings, curves, metrics and examples, read from its folder; torn files leave blanks."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from lavis_ext.browse.html import Series, Tile, figure, figures, line_chart, write_document
from lavis_ext.common.files import decode_json, read_errors, read_file
from lavis_ext.common.wording import NOT_SCORES, displayed
from lavis_ext.fetch.lock import is_abandoned
from lavis_ext.metrics.vqa import KINDS

Record = dict[str, Any]
STATES = {"finished": "good", "evaluated": "good", "stopped": "bad", "killed": "bad"}
KILLED = {"status": "killed", "error": "its process is gone; the same command resumes"}
"""What is true of a run that could not write its own end."""
AGGREGATE = "agg_metrics"
AFTERWARDS = ("best", "test")
"""Labels of evaluations that are made with a checkpoint when the training is over."""
CLOCKED = ("samples_per_s", "data_wait", "peak_memory_mb")
ROLES = ("user", "assistant", "system")
NO_LOSS = {"kind", "step", "epoch", "lr", "grad_norm", "skipped", *CLOCKED}
FEW = 100
"""A score of fewer samples says little: the report says how many there were."""
MAX_SHOTS = 48
EDGE = 4
MAX_TRUTHS = 3
MAX_BYTES = 200_000
DESCRIBED = ("Closest to what people wrote", "Furthest from it", "A cross-section")
ANSWERED = ("Right", "Wrong", "A cross-section")
TALKED = ("", "", "The first conversations")
LEAST_SPAN = 0.01
"""What the scale of a chart of scores spans at least: one of nothing is flat at 0."""


@dataclass(frozen=True)
class RunRecords:
    """A run as its report shows it."""

    folder: Path
    facts: Record = field(default_factory=dict)
    data: Record = field(default_factory=dict)
    faults: Record = field(default_factory=dict)
    steps: list[Record] = field(default_factory=list)
    evaluations: list[Record] = field(default_factory=list)
    galleries: list[Record] = field(default_factory=list)
    answers: list[Record] = field(default_factory=list)
    """Accuracy of answers by kind, one record a split."""
    config: str = ""

    @property
    def name(self) -> str:
        """The id of the job."""
        return str(self.facts.get("job", self.folder.name))

    @property
    def best(self) -> Record:
        """`metric`, `step`, `epoch` and `split` of the best evaluation; {} without one."""
        return as_object(self.facts.get("best"))

    @property
    def loss_names(self) -> list[str]:
        """The losses that were logged, `loss` first."""
        names = {key for record in self.steps for key in record if key not in NO_LOSS}
        return sorted(names, key=lambda name: (name != "loss", name))


def read_run(folder: Path, data: Mapping[str, Any] | None = None) -> RunRecords:
    """All that the report needs; `data` replaces the folder's `data.json`."""
    lines = read_lines(folder / "log.jsonl")
    config = folder / "config.yaml"
    return RunRecords(
        folder=folder,
        facts=read_facts(folder),
        data=dict(data) if data is not None else read_object(folder / "data.json"),
        faults=read_object(folder / "faults.json"),
        steps=[line for line in lines if line.get("kind") == "train"],
        evaluations=[line for line in lines if line.get("kind") == "eval" and isinstance(line.get("metrics"), dict)],
        galleries=[
            read_object(file) | {"folder": str(file.parent)}
            for file in sorted(folder.glob("result/gallery/*/index.json"))
        ],
        answers=[read_object(file) for file in sorted(folder.glob("result/breakdown/*.json"))],
        config=read_file(config).decode("utf-8", "replace") if config.is_file() else "",
    )


def read_facts(folder: Path) -> Record:
    """What `run.json` says; of a run whose process is gone without a word, that it was killed."""
    facts = read_object(folder / "run.json")
    if facts.get("status") == "running" and is_abandoned(folder / "owner.json"):
        facts |= KILLED
    return facts


def read_lines(path: Path) -> list[Record]:
    """The JSON objects of a file of lines; torn lines are left out."""
    if not path.is_file():
        return []
    found = (parse(line) for line in read_file(path).decode("utf-8", "replace").split("\n"))
    return [line for line in found if line]


def read_object(path: Path) -> Record:
    """A JSON object; {} if there is none."""
    return parse(read_file(path).decode("utf-8", "replace")) if path.is_file() else {}


def parse(text: str) -> Record:
    """A JSON object from text; {} for anything else."""
    try:
        return as_object(decode_json(text))
    except (ValueError, RecursionError):
        return {}


def as_object(value: Any) -> Record:
    """A JSON object; {} for anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """A JSON list; [] for anything else."""
    return value if isinstance(value, list) else []


def finite(value: Any) -> float | None:
    """A number that is one, else None."""
    found = number(value)
    return found if math.isfinite(found) else None


def count(value: Any) -> str:
    """A whole number, or a dash for what is none."""
    found = finite(value)
    return "–" if found is None else f"{found:,.0f}"


def number(value: Any) -> float:
    """A float, nan for what is none."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def write_run_report(job_dir: Path, data: Mapping[str, Any] | None = None, out: Path | None = None) -> Path:
    """Write `out` (default: `job_dir/report.html`) from the files of the folder; returns its path. Raises DiskError.

    `data` is what is known of the data sets (default: `data.json`); `subset` true in it marks the figures as those of a
    subset. Works on a run that is still going on, or was stopped.
    """
    target = out or job_dir / "report.html"
    with read_errors(job_dir):
        values = page_values(read_run(job_dir, data))
    write_document(target, "run.html", **values)
    return target


def page_values(run: RunRecords) -> dict[str, Any]:
    """The values for `run.html`."""
    facts = run.facts
    state = str(facts.get("status", "running"))
    model = " ".join(str(value) for value in as_object(facts.get("model")).values())
    datasets = ", ".join(map(str, as_list(facts.get("datasets"))))
    return {
        "run": run,
        "state": (state, STATES.get(state, "")),
        "task": str(facts.get("task") or ""),
        "facts": [(text, text is model) for text in (model, datasets, when(facts)) if text],
        "error": str(facts.get("error") or ""),
        "random": facts.get("weights") == "random",
        "counted": counted(run),
        "tiles": tiles(run),
        "curves": curves(run),
        "metrics": metric_table(run),
        "answers": [found for one in run.answers if (found := answer_tables(one))],
        "galleries": [found for one in run.galleries if (found := examples(one))["groups"]],
        "faults": fault_rows(run),
    }


def when(facts: Mapping[str, Any]) -> str:
    """`21 Nov 2025, 14:03, took 2 h 05 min`, as far as it is known; the time of all starts of the job together."""
    start = moment(facts.get("started"))
    if start is None:
        return ""
    seconds = finite(facts.get("seconds"))
    took = "" if seconds is None else f", took {duration(seconds)}"
    return f"{start.day} {start:%b %Y, %H:%M}{took}"


def moment(text: Any) -> datetime | None:
    """A time as `run.json` has it; None for anything else."""
    try:
        return datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        return None


def duration(seconds: float) -> str:
    """Seconds in the two largest units."""
    whole = max(round(seconds), 0)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"


def tiles(run: RunRecords) -> list[Tile]:
    """Best metric, last loss, steps, speed, memory: those that are known."""
    last, found = run.steps[-1] if run.steps else {}, []
    record = best_record(run) or (run.evaluations[-1] if run.evaluations else {})
    if record:
        name, value = headline(record["metrics"])
        where = f"{record.get('split')}{sized(run, record)}"
        if name:
            best = f"best {name}" if best_record(run) else name
            found.append(Tile(best, figure(displayed(name, value)), f"on {where}, {label(record)}"))
        else:
            found.append(Tile("score", "none", f"nothing was scored on {where}"))
    if last:
        found.append(
            Tile("loss", figure(number(last.get("loss"))), f"first {figure(number(run.steps[0].get('loss')))}")
        )
        epochs = 1 + int(finite(last.get("epoch")) or 0)
        found.append(Tile("steps", count(last.get("step")), f"{epochs} epochs" if epochs > 1 else "1 epoch"))
        found += speed_tiles(run.steps)
    return found


def best_of(records: RunRecords) -> Record:
    """The evaluation that the run recorded as best, else that with the highest aggregate, else the last; {} if none."""
    wanted = records.best.get("split"), records.best.get("step")
    evaluations = records.evaluations
    chosen = [r for r in evaluations if records.best and (r.get("split"), r.get("step")) == wanted]
    if chosen:
        return chosen[0]
    if scored := [r for r in evaluations if finite(r["metrics"].get(AGGREGATE)) is not None]:
        return max(scored, key=lambda r: number(r["metrics"][AGGREGATE]))
    return evaluations[-1] if evaluations else {}


def best_record(run: RunRecords) -> Record:
    """The best of several evaluations, also while the run goes on; {} where there are not several, or all are zero."""
    splits = [record.get("split") for record in curve_records(run)]
    found = best_of(run) if run.best or len(splits) > len(set(splits)) else {}
    metrics = found.get("metrics", {})
    values = [displayed(name, number(metrics.get(name))) for name in (headline(metrics)[0], AGGREGATE)]
    return found if any(value and math.isfinite(value) for value in values) else {}


def curve_records(run: RunRecords) -> list[Record]:
    """The evaluations while it trained: that of the best checkpoint, made afterwards, is no point of a curve."""
    return [record for record in run.evaluations if record.get("label") not in AFTERWARDS]


def speed_tiles(steps: list[Record]) -> list[Tile]:
    """Median speed, share of the time that waited for data, peak memory."""
    speeds, waits, peaks = (
        [value for step in steps if (value := finite(step.get(name))) is not None] for name in CLOCKED
    )
    memory = max(peaks, default=0)
    found = (
        [Tile("samples / s", figure(median(speeds)), f"{median(waits):.0%} of it waiting for data")]
        if speeds and waits
        else []
    )
    return found + ([Tile("peak memory", f"{memory / 1024:.1f} GiB")] if memory else [])


def headline(metrics: Mapping[str, Any]) -> tuple[str, float]:
    """The metric to show first: CIDEr or overall if there is one, else the aggregate, else any; ("", nan) if none."""
    numeric = {name: number(value) for name, value in metrics.items() if isinstance(value, (int, float))}
    name = next((name for name in ("CIDEr", "overall", AGGREGATE, *numeric) if name in numeric), "")
    return name, numeric.get(name, math.nan)


def curves(run: RunRecords) -> list[str]:
    """Losses, learning rate, gradient norm and speed over steps, and the metrics of splits evaluated more than once."""
    charts = [
        line_chart("Loss", [series(run.steps, name) for name in run.loss_names[:6]]),
        line_chart("Learning rate", [series(run.steps, "lr")]),
    ]
    trained = curve_records(run)
    for split in dict.fromkeys(str(record.get("split")) for record in trained):
        records = [record for record in trained if str(record.get("split")) == split]
        if len(records) > 1:
            scored = [
                {n: displayed(n, number(v)) for n, v in r["metrics"].items()} | {"step": r.get("step")} for r in records
            ]
            names = metric_names(records)[:6]
            charts.append(
                line_chart(f"Metrics on {split}", [series(scored, name) for name in names], least=span_of(names))
            )
    charts.append(line_chart("Gradient norm", [series(run.steps, "grad_norm")]))
    charts = [chart for chart in charts if chart]
    if len(charts) % 2:  # the speed, a tile already, fills the grid
        charts.append(line_chart("Samples per second", [series(run.steps, "samples_per_s")]))
    return [chart for chart in charts if chart]


def span_of(names: Sequence[str]) -> float:
    """What the scale of a chart of these metrics spans at least; of losses alone, what they do."""
    return 0.0 if all(map(NOT_SCORES.search, names)) else LEAST_SPAN


def series(records: list[Record], name: str) -> Series:
    """One value of the log over steps."""
    return Series(name, [(number(r.get("step")), number(r[name])) for r in records if name in r])


def metric_names(records: list[Record]) -> list[str]:
    """Names of all plain metrics in the order of their first appearance; the aggregate only where it is alone."""
    names = dict.fromkeys(n for r in records for n, v in r["metrics"].items() if isinstance(v, (int, float)))
    plain = [name for name in names if name != AGGREGATE]
    return plain or list(names)


def metric_table(run: RunRecords) -> dict[str, Any]:
    """A row for each evaluation; `marked` is that of the best, -1 without one."""
    names, best = metric_names(run.evaluations), best_record(run)
    values = {name: [finite(record["metrics"].get(name)) for record in run.evaluations] for name in names}
    columns = [figures([None if v is None else displayed(name, v) for v in some]) for name, some in values.items()]
    return {
        "head": ["evaluation", "step", *names],
        "rows": [
            [f"{r.get('split')}, {label(r)}", count(r.get("step")), *(column[row] for column in columns)]
            for row, r in enumerate(run.evaluations)
        ],
        "marked": next((index for index, record in enumerate(run.evaluations) if record is best), -1),
        "unscored": "" if names else ", ".join(dict.fromkeys(str(r.get("split")) for r in run.evaluations)),
    }


def label(record: Record) -> str:
    """`epoch 3`, or which model was evaluated."""
    name = str(record.get("label", ""))
    name = {"best": "best checkpoint", "test": "the model as loaded"}.get(name, name)
    return f"epoch {int(name) + 1}" if name.isascii() and name.isdigit() else name


def counted(run: RunRecords) -> str:
    """How many samples the small splits have, and which epoch a file of results is of, in sentences."""
    splits = dict.fromkeys(str(record.get("split")) for record in run.evaluations)
    told = [f"{split}: {count(size)} samples." for split in splits if (size := few(run, split)) is not None]
    named = [(file, record) for record in run.evaluations if (file := result_file(run, record))]
    if named and label(named[-1][1]) != str(named[-1][1]["label"]):
        told.append(f"Files count epochs from 0, as LAVIS: {named[-1][0]} is of {label(named[-1][1])}.")
    return " ".join(told)


def few(run: RunRecords, split: str) -> int | None:
    """The samples of a split that has fewer than `FEW`; None for others, and where it is not known."""
    counts = list(as_object(as_object(run.facts.get("samples")).get(split)).values())
    known = [int(number(one)) for one in counts if finite(one) is not None]
    return sum(known) if known and len(known) == len(counts) and sum(known) < FEW else None


def sized(run: RunRecords, record: Record) -> str:
    """` (5 samples)` for an evaluation of a small split, else nothing."""
    size = few(run, str(record.get("split")))
    return "" if size is None else f" ({size} sample{'' if size == 1 else 's'})"


def result_file(run: RunRecords, record: Record) -> str:
    """`result/val_epoch11.json` of the evaluation after epoch 12, where there is one; else nothing."""
    split, named = str(record.get("split")), str(record.get("label"))
    if not (named.isascii() and named.isdigit()) or "/" in split:
        return ""
    name = f"result/{split}_epoch{named}.json"
    return name if (run.folder / name).is_file() else ""


def fault_rows(run: RunRecords) -> list[list[str]]:
    """Per data set and split that lost any: samples seen, samples lost, why, and the first."""
    rows = []
    for part in run.faults.values():
        for key, tally in as_object(part).items():
            if lost := as_object(tally).get("bad"):
                why = ", ".join(f"{reason} ({times})" for reason, times in as_object(tally.get("reasons")).items())
                first = as_object(next(iter(as_list(tally.get("first"))), None))
                rows.append([key, count(tally.get("seen", 0)), count(lost), why, str(first.get("id", ""))])
    return rows


def answer_tables(found: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy by kind of answer and question, from the breakdown that a task wrote; {} if it is empty."""
    tables = {
        "by_answer": [_accuracy(row) for row in _objects(found, "answer_types")],
        "by_question": [_accuracy(row) for row in _objects(found, "question_types")],
        "confusion": _confusion(found.get("confusion")),
        "mistakes": [
            [str(row.get(key, "")) or "(nothing)" for key in ("truth", "said", "type", "questions")]
            for row in _objects(found, "mistakes")
        ],
    }
    return {"split": str(found.get("split", "")), **tables} if any(tables.values()) else {}


def _accuracy(row: Mapping[str, Any]) -> tuple[str, str, str, int]:
    accuracy = finite(row.get("accuracy")) or 0.0
    return str(row.get("name", "")), count(row.get("questions")), f"{accuracy:.2f}", step_of(accuracy)


def _confusion(confusion: Any) -> dict[str, Any]:
    """Each count with its share of the row; a count of nothing is empty."""
    if not isinstance(confusion, Mapping) or not confusion:
        return {}
    counted = {str(name): row for name, row in confusion.items() if isinstance(row, Mapping)}
    columns = list(dict.fromkeys([*KINDS, *(str(kind) for row in counted.values() for kind in row)]))
    rows = []
    for name, row in counted.items():
        counts = [finite(row.get(column)) or 0.0 for column in columns]
        total = sum(counts) or 1.0
        cells = [(f"{n:,.0f}" if n else "", f"{n / total:.0%}", step_of(100 * n / total)) for n in counts]
        rows.append((name, cells))
    return {"columns": columns, "rows": rows}


def step_of(share: float) -> int:
    """A share in percent as one of the widths that the style sheet has for a bar behind a figure."""
    return 5 * round(min(max(share, 0.0), 100.0) / 5)


def _objects(found: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return [row for row in as_list(found.get(key)) if isinstance(row, Mapping)]


def examples(gallery: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs of a model beside the references, from the index that `write_gallery` wrote."""
    shots = [shot for shot in as_list(gallery.get("shots")) if isinstance(shot, dict)][:MAX_SHOTS]
    folder = Path(str(gallery.get("folder", ".")))
    asked = any(shot.get("asked") for shot in shots)
    talked = any(shot.get("turns") for shot in shots)
    compared = [
        shot for shot in shots if talked or as_list(shot.get("truths"))
    ]  # what nobody wrote about is not ranked
    alone = ("", "", "What the model answered" if asked else "What the model wrote")
    titles = TALKED if talked else alone if not compared else ANSWERED if asked else DESCRIBED
    groups = {name: [shot for shot in compared if shot.get("group") == name] for name in ("best", "worst", "others")}
    groups["others"] += [shot for shot in shots if shot not in compared]
    found = [(title, [_example(s, folder) for s in some]) for title, some in zip(titles, groups.values(), strict=True)]
    figure = "what the answer is worth" if asked else "the share of words in common with the closest of theirs (F1)"
    note = "Bold: the model. Indented: people." if compared else "By the model; nobody wrote anything to compare with."
    note += f" The figure is {figure}." if compared and not talked else ""
    return {"split": str(gallery.get("split", "")), "note": note, "groups": [one for one in found if one[1]]}


def _example(shot: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Its pictures as data URIs: only small JPEGs in the gallery's own folder."""
    named = as_list(shot.get("images")) or [shot.get("image", "")]
    files = [folder / Path(str(name)).name for name in named]
    small = [file for file in files if file.suffix == ".jpg" and file.is_file() and file.stat().st_size <= MAX_BYTES]
    encoded = [base64.b64encode(file.read_bytes()).decode("ascii") for file in small]
    turns = [turn for turn in as_list(shot.get("turns")) if isinstance(turn, dict)]
    truths = list(dict.fromkeys(str(text) for text in as_list(shot.get("truths"))))
    score = shot.get("score") if truths else None
    return {
        "name": str(shot.get("id", "")),
        "asked": str(shot.get("asked") or ""),
        "turns": [(role_of(turn), str(turn.get("content", ""))) for turn in turns],
        "said": str(shot.get("said", "")),
        "truths": truths[:MAX_TRUTHS],
        "score": f"{score:.2f}" if isinstance(score, (int, float)) else "",
        "sources": [f"data:image/jpeg;base64,{text}" for text in encoded],
    }


def role_of(turn: Mapping[str, Any]) -> str:
    """The role of a turn, one that the style sheet knows."""
    return next((role for role in ROLES if turn.get("role") == role), "user")


def choose(scores: Sequence[float], wanted: int = MAX_SHOTS, edge: int = EDGE) -> dict[int, str]:
    """Which samples to show, by index → group: the `edge` best and worst, and others evenly from the rest."""
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    edge = min(edge, len(ranked) // 3)
    best, worst = ranked[:edge], ranked[len(ranked) - edge :]
    rest = sorted(set(ranked) - set(best) - set(worst))
    every = max(-(-len(rest) // max(wanted - 2 * edge, 1)), 1)
    groups = [(best, "best"), (worst[::-1], "worst"), (rest[::every], "others")]
    return {index: name for members, name in groups for index in members}


def overlap(said: str, truths: Sequence[str]) -> float:
    """F1 of the words of `said` and of the closest of `truths`, in [0, 1]."""
    return max((_f1(said.lower().split(), truth.lower().rstrip(".").split()) for truth in truths), default=0.0)


def _f1(one: Sequence[str], other: Sequence[str]) -> float:
    common = len(set(one) & set(other))
    total = len(set(one)) + len(set(other))
    return 2 * common / total if total else 0.0
