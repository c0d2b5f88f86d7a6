"""`report.html` of a run: what it was, how it went, what it said about pictures; one offline file."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from lavis_ext.browse.answers import answers_section
from lavis_ext.browse.chart import Series, line_chart, shown
from lavis_ext.browse.gallery import gallery_section
from lavis_ext.browse.html import badge, folded, page, section, table, tile
from lavis_ext.browse.records import Record, RunRecords, number, read_run

STATES = {"finished": "good", "evaluated": "good", "stopped": "bad"}
AGGREGATE = "agg_metrics"


def write_run_report(job_dir: Path, data: Mapping[str, Any] | None = None, out: Path | None = None) -> Path:
    """Write `out` (default: `job_dir/report.html`) from what lies in the folder; returns its path.

    `data` is what is known of the data sets (default: `data.json`); `subset` true in it marks the figures as those of a
    subset. Works on a run that is still going on, or was stopped.
    """
    target = out or job_dir / "report.html"
    part = target.with_name(f".{target.name}.part")
    part.write_text(render(read_run(job_dir, data)), encoding="utf-8")
    part.replace(target)
    return target


def render(run: RunRecords) -> str:
    """The document."""
    note = "The best evaluation, by its aggregate metric, is set off." if run.best else ""
    parts = [
        header(run),
        section("Curves", curves(run)),
        section("Metrics", metric_table(run), note),
        *(answers_section(found) for found in run.answers),
        *(gallery_section(gallery) for gallery in run.galleries),
        section("Faults", fault_table(run), "Samples that could not be read; they were counted and left out."),
        section("Configuration", folded("config.yaml, as resolved", run.config) if run.config else ""),
        f"<footer>Made by lavis-ext from {escape(run.folder.name)}/log.jsonl and result/.</footer>",
    ]
    return page(f"{run.name} · run report", parts)


def header(run: RunRecords) -> str:
    """Badges, name, one line of facts, the error if there was one, and the numbers that matter."""
    facts = run.facts
    state = str(facts.get("status", "running"))
    badges = [badge(state, STATES.get(state, ""))]
    badges += [badge(str(facts["task"]))] if facts.get("task") else []
    badges += [badge("subset: not comparable with published figures", "warn")] if run.data.get("subset") else []
    model = escape(" ".join(str(value) for value in (facts.get("model") or {}).values()))
    said = [
        f"<b>{model}</b>" if model else "",
        escape(", ".join(map(str, facts.get("datasets") or []))),
        escape(when(facts)),
    ]
    line = " &nbsp;·&nbsp; ".join(text for text in said if text)
    alert = f'<p class="alert">{escape(str(facts["error"]))}</p>' if facts.get("error") else ""
    numbers = "".join(tiles(run))
    numbers = f'<div class="tiles">{numbers}</div>' if numbers else ""
    top = f'<div class="badges">{"".join(badges)}</div><h1>{escape(run.name)}</h1><p class="sub">{line}</p>'
    return f"<header>{top}{alert}{numbers}</header>"


def when(facts: Mapping[str, Any]) -> str:
    """`21 Nov 2025, 14:03, took 2 h 05 min`, as far as it is known; the time of all starts of the job together."""
    start = moment(facts.get("started"))
    if start is None:
        return ""
    took = f", took {duration(facts['seconds'])}" if isinstance(facts.get("seconds"), (int, float)) else ""
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


def tiles(run: RunRecords) -> list[str]:
    """Best metric, last loss, steps, speed, memory: those that are known."""
    last, found = run.steps[-1] if run.steps else {}, []
    record = best_record(run) or (run.evaluations[-1] if run.evaluations else {})
    if record:
        name, value = headline(record["metrics"])
        found.append(
            tile(f"best {name}" if run.best else name, fixed(value), f"{record.get('split')}, {label(record)}")
        )
    if last:
        found.append(tile("loss", shown(number(last.get("loss"))), f"first {shown(number(run.steps[0].get('loss')))}"))
        found.append(tile("steps", f"{last['step']:,}", f"{last['epoch'] + 1} epochs" if last["epoch"] else "1 epoch"))
        found += speed_tiles(run.steps)
    return found


def best_record(run: RunRecords) -> Record:
    """The evaluation that was judged best; {} if none was."""
    wanted = run.best.get("split"), run.best.get("step")
    return next((r for r in run.evaluations if run.best and (r.get("split"), r.get("step")) == wanted), {})


def fixed(value: float) -> str:
    """A metric with as many decimals as its neighbours."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 1000 else shown(value)


def speed_tiles(steps: list[Record]) -> list[str]:
    """Median speed, share of the time that waited for data, peak memory."""
    speeds = [step["samples_per_s"] for step in steps if "samples_per_s" in step]
    waits = [step["data_wait"] for step in steps if "data_wait" in step]
    memory = max((number(step.get("peak_memory_mb", 0)) for step in steps), default=0)
    found = (
        [tile("samples / s", shown(median(speeds)), f"{median(waits):.0%} of it waiting for data")]
        if speeds and waits
        else []
    )
    return found + ([tile("peak memory", f"{memory / 1024:.1f} GiB")] if memory else [])


def headline(metrics: Mapping[str, Any]) -> tuple[str, float]:
    """The metric to show first: CIDEr or overall if there is one, else the aggregate, else any."""
    numeric = {name: number(value) for name, value in metrics.items() if isinstance(value, (int, float))}
    name = next((name for name in ("CIDEr", "overall", AGGREGATE, *numeric) if name in numeric), "")
    return name, numeric.get(name, 0.0)


def curves(run: RunRecords) -> str:
    """Losses, learning rate, gradient norm and speed over steps, and the metrics of each validation split."""
    charts = [line_chart("Loss", [series(run.steps, name) for name in run.loss_names[:6]])]
    charts.append(line_chart("Learning rate", [series(run.steps, "lr")]))
    charts += metric_charts(run)
    charts.append(line_chart("Gradient norm", [series(run.steps, "grad_norm")]))
    charts = [chart for chart in charts if chart]
    if len(charts) % 2:  # the speed, a tile already, fills the grid
        charts.append(line_chart("Samples per second", [series(run.steps, "samples_per_s")]))
    drawn = "".join(charts)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def metric_charts(run: RunRecords) -> list[str]:
    """One chart a split that was evaluated more than once."""
    splits = dict.fromkeys(str(record.get("split")) for record in run.evaluations)
    charts = []
    for split in splits:
        records = [record for record in run.evaluations if record.get("split") == split]
        names = metric_names(records)[:6]
        lines = [Series(n, [(number(r.get("step")), number(r["metrics"].get(n))) for r in records]) for n in names]
        charts.append(line_chart(f"Metrics on {split}", lines) if len(records) > 1 else "")
    return charts


def series(records: list[Record], name: str) -> Series:
    """One value of the log over steps."""
    return Series(name, [(number(r.get("step")), number(r[name])) for r in records if name in r])


def metric_names(records: list[Record]) -> list[str]:
    """Names of all plain metrics in the order of their first appearance; the aggregate only where it is alone."""
    names = dict.fromkeys(n for r in records for n, v in r["metrics"].items() if isinstance(v, (int, float)))
    plain = [name for name in names if name != AGGREGATE]
    return plain or list(names)


def metric_table(run: RunRecords) -> str:
    """A row for each evaluation, the best set off."""
    names, best = metric_names(run.evaluations), best_record(run)
    rows = [
        [f"{r.get('split')}, {label(r)}", str(r.get("step", "")), *(cell(r["metrics"].get(name)) for name in names)]
        for r in run.evaluations
    ]
    marked = next((index for index, record in enumerate(run.evaluations) if record is best), -1)
    return table(["evaluation", "step", *names], rows, marked)


def cell(value: Any) -> str:
    """A metric, or a dash where there is none."""
    return fixed(float(value)) if isinstance(value, (int, float)) else "–"


def label(record: Record) -> str:
    """`epoch 3`, or what the evaluation was called."""
    name = str(record.get("label", ""))
    return f"epoch {int(name) + 1}" if name.isascii() and name.isdigit() else name


def fault_table(run: RunRecords) -> str:
    """Per data set and split: samples seen, samples lost, why, and the first; "" where nothing was lost."""
    tallies = [(key, tally) for part in run.faults.values() if isinstance(part, dict) for key, tally in part.items()]
    rows = [fault_row(str(key), tally) for key, tally in tallies if isinstance(tally, dict) and tally.get("bad")]
    return f'<div class="text">{table(["data set", "seen", "lost", "why", "the first"], rows)}</div>' if rows else ""


def fault_row(key: str, tally: Mapping[str, Any]) -> list[str]:
    """The cells of one data set."""
    why = ", ".join(f"{reason} ({count})" for reason, count in dict(tally.get("reasons") or {}).items())
    first: Mapping[str, Any] = next(iter(tally.get("first") or []), {})
    return [key, f"{tally.get('seen', 0):,}", f"{tally['bad']:,}", why, str(first.get("id", ""))]
