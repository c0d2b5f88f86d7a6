"""`lavis-ext export`: a checkpoint as LAVIS, VPGTrans, transformers or Oscar read it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from lavis_ext.cli.chat import find_weights, read_setup
from lavis_ext.commands.answer import OPTIONS, Answer, Argument
from lavis_ext.errors import UsageError
from lavis_ext.schema import ModelConfig
from lavis_ext.wording import columns

FORMS = ("lavis", "vpgtrans", "transformers", "oscar")
EXPORT: list[Argument] = [
    (("checkpoint",), {"metavar": "CHECKPOINT", "help": "a checkpoint, or the folder of a run (its best)"}),
    (("out",), {"metavar": "OUT", "help": "OUT.pth, or a folder for --form transformers and oscar"}),
    (("--form",), {"choices": FORMS, "default": "lavis", "help": "whose form (default: lavis)"}),
    (("--cfg-path",), {"metavar": "F", "help": "the run file or the YAML of the model; default: that of the run"}),
    OPTIONS,
]


def export(args: Namespace) -> Answer:
    """Write the weights of a checkpoint under others' names, and tell what was written."""
    checkpoint, out = find_weights(args.checkpoint), Path(args.out).expanduser()
    if out.exists():
        raise UsageError(str(out), "is there already", "name another place, or remove it")
    if not out.parent.is_dir():
        raise UsageError(str(out.parent), "no such folder", "make it first")
    config = model_of(checkpoint, args.cfg_path, list(args.options))
    from lavis_ext.models.export import export_oscar, export_transformers, export_upstream

    if args.form == "transformers":
        done = export_transformers(config, out)
    elif args.form == "oscar":
        done = export_oscar(config, out)
    else:
        done = export_upstream(str(checkpoint), out, config.arch, args.form)
    rows = [[name, f"{tensors:,}", f"{numbers:,}"] for name, (tensors, numbers) in sorted(done.parts.items())]
    lines = columns([["part", "tensors", "numbers"], *rows])
    lines += [f"left out, {done.form} has no place for them: {', '.join(done.left)}"] if done.left else []
    told = {"out": str(out), "form": done.form, "arch": config.arch, "tensors": done.shapes, "left": done.left}
    return Answer([*lines, f"{done.form}: {out}"], [told])


def model_of(checkpoint: Path, path: str | None, options: list[str]) -> ModelConfig:
    """The model section that goes with a checkpoint, with the checkpoint as its weights; raises UsageError."""
    beside = checkpoint.parent / "config.yaml"
    if path is None and not beside.is_file():
        what = "there is no config.yaml of its run beside it"
        raise UsageError(str(checkpoint), what, "name the run file or the YAML of the model with --cfg-path")
    return read_setup(path or str(beside), options, str(checkpoint)).model
