"""Studies: what models learn on the drawn world, one YAML each; run from a checkout.

`python -m studies NAME` is `lavis-ext demo --study NAME`. `study.py` says what a YAML declares and how its table is
made, `run.py` trains its legs; their data are drawn by `tests/world/`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from studies.run import run_study
from studies.study import study_files, study_problems
from tests.world.export import prepare_every, table

__all__ = ["run_all", "run_studies", "study_files", "study_problems"]
Report = tuple[list[str], list[dict[str, Any]], int]
"""Lines for a person, objects for a program, and the exit code."""


def run_studies(names: Iterable[str], out: Path, seeds: int, jobs: int, seed: int) -> Report:
    """The tables of some studies; see `run_study`."""
    found = [run_study(name, out, seeds, jobs, seed) for name in names]
    lines = [line for findings in found for line in ("", *findings.lines())]
    return lines, [findings.summary() for findings in found], 0


def run_all(out: Path, seeds: int, jobs: int, seed: int) -> Report:
    """Every family of data sets prepared from a small world below `out/families`, then every study.

    A family that fails is named, and the highest of their codes is the exit code.
    """
    states = prepare_every(out.expanduser().absolute() / "families", seed)
    lines, objects, _ = run_studies(study_files(), out, seeds, jobs, seed)
    rows = [f"  {line}" for line in table(states)]
    families = {"families": [asdict(state) for state in states]}
    return [*rows, *lines], [families, *objects], max(state.exit_code for state in states)
