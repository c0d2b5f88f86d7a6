"""The verbs about all else: check, doctor, features, volta, demo."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lavis_ext.commands.answer import Answer, cache_root_of, progress_of
from lavis_ext.errors import Problem, UsageError
from lavis_ext.wording import columns


def check(args: Namespace) -> Answer:
    """Every mistake of YAML files, or of all below folders, at once; exit code 3 if there is any."""
    from lavis_ext.check import check_file

    files: list[Path] = []
    for path in map(Path, args.paths):
        if not path.exists():
            raise UsageError(str(path), "no such file or folder", "name YAML files, or folders that hold some")
        files += sorted(path.rglob("*.y*ml")) if path.is_dir() else [path]
    if not files:
        raise UsageError(" ".join(args.paths), "holds no YAML", "name YAML files, or folders that hold some")
    found: list[Problem] = [problem for file in files for problem in check_file(file)]
    lines = [*map(str, found), f"{len(files)} files, {len(found)} problems"]
    return Answer(lines, [asdict(p) for p in found], 3 if found else 0)


def doctor(args: Namespace) -> Answer:
    """What this machine offers and what would get in the way; secrets are told as set or unset."""
    from lavis_ext.doctor import examine

    findings = examine(cache_root_of(args))
    lines = columns([[f.name, f.state, f.text] for f in findings])
    return Answer(lines, [asdict(f) for f in findings], 0 if all(f.state != "bad" for f in findings) else 1)


def features(args: Namespace) -> Answer:
    """Convert, join, index and check region features."""
    from lavis_ext.cli.features import run_action

    with progress_of(args) as progress:
        return Answer(*run_action(args, progress))


def volta(args: Namespace) -> Answer:
    """One step of volta's COCO pipeline."""
    from lavis_ext.cli.volta import run_step

    with progress_of(args) as progress:
        return Answer(*run_step(args, cache_root_of(args), progress))


def demo(args: Namespace) -> Answer:
    """Draw a small world, fetch it, train a tiny BLIP-2 on it, score its captions; or only a study."""
    out = Path(args.out)
    if args.study:
        return study(args, [args.study], out)
    from lavis_ext.demo.tour import run_demo

    result = run_demo(out, seed=args.seed, all_families=args.all)
    answer = Answer(result.lines(), [result.summary()], result.exit_code)
    if args.all:
        from lavis_ext.studies import study_names

        more = study(args, study_names(), out)
        answer.lines += more.lines
        answer.objects += more.objects
    return answer


def study(args: Namespace, names: Sequence[str], out: Path) -> Answer:
    """What models learn on the drawn world, over several seeds, as tables."""
    from lavis_ext.demo.study_runs import run_study

    found = [run_study(name, out, args.seeds, args.jobs, args.seed) for name in names]
    lines = [line for findings in found for line in ("", *findings.lines())]
    return Answer(lines, [findings.summary() for findings in found])
