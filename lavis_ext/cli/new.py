"""The verb `new`: the YAML of data that one has, and run files that train and evaluate a small model on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_ext.cli.verb import REQUIRED, Answer, configs_first, examples, flag, to_stderr
from lavis_ext.common.errors import ConfigError, Problem, UsageError
from lavis_ext.common.files import disk_errors, expanded, is_encodable, write_atomic
from lavis_ext.common.secrets import CONTROL, printable

if TYPE_CHECKING:
    from lavis_ext.datasets.own import Guess

HOLDOUT = 0.1
"""The share of the pictures that is set aside to evaluate on, where nothing else is."""
STEPS, BATCH, MOST_EPOCHS, WARMUP = 120, 16, 40, 10
"""About a minute of the tiny model on one core."""

WEIGHTS = """\
  # Its weights are random unless a run is named, as `train` does at its end, here or by --options model.finetuned=RUN
  # load_finetuned: true
  # finetuned: output/{name}/RUN
"""


@dataclass(frozen=True, kw_only=True)
class New:
    """Flags of `new`."""

    name: str = flag(REQUIRED, positional=True, metavar="NAME", help="what the data set is to be called")
    path: str = flag(
        REQUIRED, positional=True, metavar="PATH", help="pictures, a table, a list of records, shards: docs/own-data.md"
    )
    out: Path | None = flag(None, metavar="DIR", help="where the files go (default: a folder NAME here)")


@examples("new birds ~/photos", "new birds birds.csv --out birds", "new talks llava_instruct.json")
def new(args: New) -> Answer:
    """Write the YAML of a data set, and a train and an eval run file for it; nothing that is there is replaced."""
    from lavis_ext.common.config.cards import load_cards
    from lavis_ext.datasets.own import guess

    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", args.name):
        raise UsageError(args.name, "is no name of a data set", "take letters, digits and _, a letter first")
    out = expanded(args.out or Path(args.name))
    cards = load_cards()
    if (args.name in cards.names() and not out.exists()) or (args.name in cards.families and not out.exists()):
        raise UsageError(args.name, f"is a data set already ({cards.resolve(args.name)[0].path})", "take another name")
    found = guess(args.path, args.name)
    section, notes = _trainable(found)
    if not found.told:
        notes.append(
            "nothing is said of the pictures, so that no run could be scored: there is no train.yaml, no eval.yaml"
        )
    texts = {out / "datasets" / args.name / "defaults.yaml": _declaration(args, found, section)}
    splits = list(section["build_info"].get("annotations", {"train": None}))
    if "train" in splits:
        texts[out / "train.yaml"] = _run(args.name, found, splits, evaluate=False)
    if not found.told:
        pass
    elif found.rows is None:
        notes.append("a stream of shards is trained on and not evaluated on: there is no eval.yaml")
    else:
        texts[out / "eval.yaml"] = _run(args.name, found, splits, evaluate=True)
    if there := [path for path in texts if path.exists()]:
        raise UsageError(str(there[0]), "is there already", "name another folder with --out, or remove it")
    if not all(map(is_encodable, texts.values())):
        raise UsageError(args.path, "has a name that is not UTF-8, which no YAML can hold", "rename it")
    for path, text in texts.items():
        with disk_errors(path):
            write_atomic(path, text)
    lines = [*found.sentences, *notes, *(f"written: {path}" for path in texts)]
    lines += [
        f"where a guess is wrong, mend {next(iter(texts))}, then: lavis-ext check {out}",
        f"look at it: lavis-ext browse {args.name} --configs {out}",
        f"decode every picture: lavis-ext verify {args.name} --configs {out} --deep",
    ]
    if problems := _problems(list(texts), out):  # what is written stays: it is what a person mends
        for line in lines:
            to_stderr(line)
        raise ConfigError.of(problems)
    if found.told:
        start, verb = ("train", "train") if "train" in splits else ("eval", "evaluate")
        lines.append(f"{verb} on it: lavis-ext {verb} --cfg-path {out / f'{start}.yaml'}")
        if start == "train":
            lines.append("what it has learnt is evaluated by the command that `train` ends with")
    return Answer(
        lines, [{"name": args.name, "files": [str(path) for path in texts], "guessed": [*found.sentences, *notes]}]
    )


def _trainable(found: Guess) -> tuple[dict[str, Any], list[str]]:
    """The declaration with the small model's processors, and with a `val` out of `train` where there is none."""
    section = {key: dict(value) if isinstance(value, Mapping) else value for key, value in found.section.items()}
    text = "blip_question" if found.task == "vqa" else "blip_caption"
    picture: dict[str, Any] = {"name": "blip_image_eval", "image_size": 64}
    if found.task == "instruct":  # the model's tower is a SigLIP, and turns stay as they are written
        picture |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    else:
        section["text_processor"] = {"train": {"name": text}, "eval": {"name": text}}
    section["vis_processor"] = {"train": dict(picture), "eval": dict(picture)}
    files = section["build_info"].get("annotations")
    notes = []
    if files and "train" in files and not {"val", "test"} & set(files):
        section["build_info"] = {**section["build_info"], "annotations": {**files, "val": files["train"]}}
        section["args"]["holdout"] = HOLDOUT
        notes.append(
            f"`val` is {HOLDOUT:.0%} of the pictures, drawn by their names, which `train` leaves out (`args: holdout`)"
        )
    if not section["args"]:
        del section["args"]
    return section, notes


def _declaration(args: New, found: Guess, section: Mapping[str, Any]) -> str:
    lines = [
        f"Written by `lavis-ext new {args.name} {args.path}`, which guessed:",
        *(f"- {s}" for s in found.sentences),
    ]
    # names of files may hold ends of lines, also YAML's own (U+2028, U+0085): a comment would end there
    head = "".join(f"# {printable(line, kept='')}\n" for line in lines)
    body = _dumped({"datasets": {args.name: dict(section)}})
    return f"{head}# Mend what is wrong; docs/own-data.md says how.\n{body}"


def _run(name: str, found: Guess, splits: list[str], evaluate: bool) -> str:
    """A run file of the tiny model: what a larger one needs stands in configs/projects/blip2/."""
    held: list[str] = [split for split in ("val", "test") if split in splits]
    run: dict[str, Any] = {"runner": "runner_base", "task": found.task}
    length = {"max_len": 10, "min_len": 1, "length_penalty": -1, "prompt": "Question: {} Answer:"}
    if evaluate:
        run |= {"evaluate": True, "test_splits": held[-1:] or ["train"]}
    else:
        run |= {"train_splits": ["train"], "valid_splits": held[:1], "test_splits": [s for s in held if s == "test"]}
        run |= {"lr_sched": "linear_warmup_cosine_lr", "init_lr": 1.2e-3, "min_lr": 1e-5}
        # the warm-up is within the first epoch, and ends with it: a longer one would never reach init_lr
        shared = not set(held) & set(found.section["build_info"].get("annotations", {}))
        rows = STEPS // 2 * BATCH if found.rows is None else found.rows
        steps = (rows - (max(1, round(HOLDOUT * rows)) if shared and held else 0)) // BATCH
        run |= {"warmup_lr": 1e-5, "warmup_steps": min(WARMUP, steps)} if steps > 1 else {}
        run |= {"weight_decay": 0.01, "clip_grad_norm": 1.0, "log_freq": 20}
        if found.rows is None:
            run |= {"max_iters": STEPS, "iters_per_inner_epoch": STEPS // 2}
        else:
            epochs = min(MOST_EPOCHS, max(1, round(STEPS * BATCH / found.rows)))
            run |= {"max_epoch": epochs, "val_freq": max(1, epochs // 3), "save_freq": 0}
    run |= {
        "batch_size_train": BATCH,
        "batch_size_eval": 32,
        "num_workers": 2,
        "seed": 42,
        "output_dir": f"output/{name}",
    }
    run |= {"num_beams": 3, **(length if found.task == "vqa" else {"max_len": 30, "min_len": 3})}
    arch = "blip2_causal" if found.task == "instruct" else "blip2_opt"
    what, hint = ("Evaluates", WEIGHTS.format(name=name)) if evaluate else ("Trains", "")
    head = f"# {what} a tiny BLIP-2 on `{name}`: a first look, on a CPU.\n"
    model = f"model:\n  arch: {arch}\n  model_type: tiny\n{hint}"
    return f"{head}{model}{_dumped({'datasets': {name: {}}, 'run': run})}"


def _dumped(tree: Mapping[str, Any]) -> str:
    """A tree as a person writes it: lists and the innermost mappings on one line, nothing by reference."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def quoted(dumper: Any, text: str) -> Any:
        # PyYAML folds a U+0085 as an end of line: in double quotes it is escaped
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if CONTROL.search(text) else None)

    Dumper.add_representer(str, quoted)
    return yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def _problems(paths: list[Path], out: Path) -> list[Problem]:
    """What `check` finds in the files just written."""
    from lavis_ext.common.config.check import check_file
    from lavis_ext.datasets.own import data_problems

    with configs_first(str(out)):
        found = [problem for path in paths for problem in check_file(path)]
        return found or data_problems(paths[0])[0]
