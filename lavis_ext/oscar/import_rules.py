"""The parts of `import_args`: the table of upstream's flags, the draft of a run file, rules, and finding the command.

A rule handles flags that do not simply become one key; it is called once for a command.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lavis_ext.common.config.decode import ConfigDecoder, read_yaml
from lavis_ext.common.errors import Problem, UsageError, nearest

TABLE = Path(__file__).with_name("flags.yaml")
"""Upstream's scripts and flags; the header of the file says what each field means."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag: the kind of its value, and what becomes of it."""

    kind: Literal["int", "float", "text", "switch"]
    to: str = ""
    via: str = ""
    default: Any = None
    by: dict[str, Any] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    also: list[str] = field(default_factory=list)
    unset: bool | None = None
    least: int | None = None
    train: bool = False
    kept: bool = False
    why: str = ""
    refuse: str = ""
    but: list[Any] = field(default_factory=list)

    def default_of(self, script: str) -> Any:
        """What upstream takes where the flag is not given; None where that is left to us."""
        return self.unset if self.unset is not None else self.by.get(script, self.default)


@dataclass(frozen=True, kw_only=True)
class Script:
    """One script of upstream's: its flags, our task and data sets; `term` is its distillation term, "" without one."""

    groups: list[str]
    task: str
    folders: dict[str, str]
    name: str = ""
    term: str = ""
    flags: dict[str, Flag] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FlagTable:
    """Everything that is known: scripts by name, endings of names by term, groups of flags."""

    scripts: dict[str, Script]
    teachers: dict[str, str]
    groups: dict[str, dict[str, Flag]]


@cache
def load_table() -> Mapping[str, Script]:
    """Every script by its name (without `.py`), those with a teacher too, with all of its flags."""
    tree, places = read_yaml(TABLE)
    door = ConfigDecoder(places)
    table = door.build(FlagTable, tree)
    door.close()
    assert table is not None
    found: dict[str, Script] = {}
    for name, script in table.scripts.items():
        for ending, term in {"": "", **table.teachers}.items():
            groups = [*script.groups, *(["distillation"] if term else [])]
            flags = {key: flag for group in groups for key, flag in table.groups[group].items()}
            found[name + ending] = replace(script, name=name, term=term, flags=flags)
    return found


TRAINING = ("do_train", "do_train_val")
OURS = ("datasets", "pretrained_models", "exp")
"""Folders of a checkout of Oscar that `lavis-ext prepare oscar` lays out below cache_root/oscar."""


@dataclass
class Draft:
    """A run file in the making, from one command of `script`: its tree, what is left out and why, mistakes."""

    script: Script
    given: Mapping[str, Any]
    where: str
    sections: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"model": {}, "args": {}, "run": {}, "distill": {}}
    )
    dataset: str = ""
    storage: str = ""
    notes: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)
    """Remarks on keys that are in the tree."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def trains(self) -> bool:
        """Whether the command trains."""
        return any(self.given.get(flag) for flag in TRAINING)

    @property
    def asks(self) -> bool:
        """Whether the script is one of questions and pairs, which validates whenever it trains."""
        return "questions" in self.script.groups

    def value(self, flag: str) -> Any:
        """The value of a flag, upstream's default where it is not given, None where the script has no such flag."""
        known = self.script.flags.get(flag)
        return self.given.get(flag, known.default_of(self.script.name) if known else None)

    def put(self, key: str, value: Any) -> None:
        """Set `section.name` of the tree."""
        section, _, name = key.partition(".")
        self.sections[section][name] = value

    def note(self, flag: str, reason: str) -> None:
        """Remember why a flag that was given is not in the tree."""
        self.notes.append((flag, reason))

    def refuse(self, flag: str, what: str, way_out: str) -> None:
        """Remember a mistake."""
        self.problems.append(Problem(f"{self.where} --{flag}", what, way_out))


def moved(path: str) -> str:
    """A path of a checkout of Oscar as it is below cache_root: `datasets/vqa/…` → `oscar/datasets/vqa/…`."""
    plain = PurePosixPath(path)
    return str(PurePosixPath("oscar", plain)) if plain.parts[:1] and plain.parts[0] in OURS else path


TEST_DEV = {"run_vqa": "test_dev", "run_gqa": "testdev"}
UPSTREAM_SPLITS = {"train": "train", "minival": "val", "val": "val", "test": "test"}
FROZEN = (
    "upstream's code never moves the teacher (its gradient is set under a misspelt name); reptile is what was meant"
)


def splits(draft: Draft) -> None:
    """`--do_*`: which splits are trained on, validated and tested."""
    given = draft.given
    test = _tested(draft)
    if draft.trains:
        validates = draft.asks or bool(given.get("evaluate_during_training"))
        draft.put("run.train_splits", ["train", "val"] if given.get("do_train_val") else ["train"])
        draft.put("run.valid_splits", ["val"] if validates else [])
        draft.put("run.test_splits", [split for split in test if not (validates and split == "val")])
        if given.get("evaluate_during_training"):
            draft.note("evaluate_during_training", "a run validates at the end of every epoch (run.val_freq)")
        return
    if given.get("evaluate_during_training"):
        draft.note("evaluate_during_training", "nothing is trained")
    if not test:
        draft.refuse("do_train", "is missing, and --do_eval and --do_test too", "say what the command is to do")
    draft.put("run.evaluate", True)
    draft.put("run.test_splits", test)


def _tested(draft: Draft) -> list[str]:
    given = draft.given
    if draft.asks:
        wanted = [("do_eval", "val"), ("do_test_dev", TEST_DEV.get(draft.script.name, "test")), ("do_test", "test")]
        return [split for flag, split in wanted if given.get(flag)]
    if not (given.get("do_test") or given.get("do_eval")):
        return []
    flag = "test_split" if "test_split" in draft.script.flags else "test_yaml"
    named = str(draft.value(flag)).removesuffix(".yaml")
    if named not in UPSTREAM_SPLITS:
        draft.refuse(flag, f"no split '{named}'", f"one of {', '.join(UPSTREAM_SPLITS)}")
    return [UPSTREAM_SPLITS.get(named, "test")]


def weights(draft: Draft) -> None:
    """What the model starts from: the student's or the named weights; of a test the folder that upstream loads."""
    flag = "student_model" if draft.script.term else "model_name_or_path"
    if not draft.trains:
        flag = "output_dir" if draft.asks else "eval_model_dir"
    name = draft.given.get(flag)
    if not name:
        draft.refuse(flag, "is missing", "name the folder of a checkpoint")
        return
    for other in ("model_name_or_path", "eval_model_dir", "student_model"):
        if other != flag and draft.given.get(other, name) != name:
            draft.note(other, f"upstream takes the weights of --{flag}")
    path = moved(str(name))
    draft.sections["model"] = {
        "arch": "oscar",
        "model_type": "large" if "large" in str(name) else "base",
        "pretrained": path,
        **draft.sections["model"],
    }
    if path == name and not PurePosixPath(path).is_absolute():
        draft.remarks.append(
            ("model.pretrained", f"{path} is looked for below cache_root, then in the working directory")
        )


def teacher(draft: Draft) -> None:
    """`task: distill`, with the terms of the script."""
    name = draft.given.get("teacher_model")
    if not name:
        draft.refuse("teacher_model", "is missing", "name the folder of the fine-tuned teacher")
        return
    section = {"task": draft.script.task, "teacher": moved(str(name)), "terms": [draft.script.term]}
    draft.sections["distill"] = {**section, **draft.sections["distill"]}
    if draft.script.term == "mkd":
        draft.put("distill.teacher_update", "none")
        draft.remarks.append(("run.distill.teacher_update", FROZEN))


def data_dir(draft: Draft) -> None:
    """The data set, and its storage: cache_root, or the folder of the published files."""
    folders, given = draft.script.folders, draft.given.get("data_dir")
    draft.dataset = next(iter(folders.values()))
    if given is None:
        return
    parts = PurePosixPath(str(given)).parts
    found = next((one for one in folders if parts[-one.count("/") - 1 :] == PurePosixPath(one).parts), None)
    if found is None:
        way_out = f"give a folder that ends with {' or '.join(folders)}, as Oscar's zip has it"
        draft.refuse("data_dir", f"'{given}' is no folder of the published data", way_out)
        return
    draft.dataset = folders[found]
    root = str(PurePosixPath(*parts[: -found.count("/") - 1]))
    if root in (".", "oscar"):
        draft.note("data_dir", f"the data set is below cache_root (lavis-ext prepare {draft.dataset})")
    else:
        draft.storage = root


def output_dir(draft: Draft) -> None:
    """The run's folder is the one that the command names, where the next command looks for the model.

    A test of pairs or captions writes beside the weights, as upstream's does.
    """
    named = draft.given.get("output_dir")
    if not draft.asks and not draft.trains:
        if named is not None:
            draft.note("output_dir", "upstream writes what a test yields into --eval_model_dir")
        named = draft.given.get("eval_model_dir")
    if folder := named or draft.value("output_dir"):
        path = PurePosixPath(str(folder))
        parent, name = (path.parent, path.name) if path.name not in ("", "..") else (path, ".")
        draft.put("run.output_dir", str(parent))
        draft.put("run.job_id", name)


def label_file(draft: Draft) -> None:
    """The vocabulary of answers."""
    for flag in ("label_file", "label2ans_file"):
        if flag in draft.given:
            draft.put(f"args.{flag}", moved(str(draft.given[flag])))


def width(draft: Draft) -> None:
    """How many numbers a region has."""
    if "img_feature_dim" in draft.given:
        draft.put("model.img_feature_dim", draft.given["img_feature_dim"])
        draft.put("args.img_feature_dim", draft.given["img_feature_dim"])


def length(draft: Draft) -> None:
    """`--max_steps` optimizer steps where they are given, else epochs; ours are counted in micro-batches."""
    steps, epochs = draft.given.get("max_steps", -1), draft.value("num_train_epochs")
    if steps > 0:
        draft.put("run.max_iters", steps * _window(draft))
        if "num_train_epochs" in draft.given:
            draft.note("num_train_epochs", "--max_steps goes before it")
        return
    draft.put("run.max_epoch", int(epochs))
    if int(epochs) != epochs:
        draft.note("num_train_epochs", f"upstream trains {int(epochs)} whole epochs")


def warmup(draft: Draft) -> None:
    """The warm-up from 0, in micro-batches."""
    draft.put("run.warmup_lr", 0)
    draft.put("run.warmup_steps", draft.given.get("warmup_steps", 0) * _window(draft))


def scheduler(draft: Draft) -> None:
    """`linear` and `constant`, both with every step."""
    linear = draft.value("scheduler") == "linear"
    draft.put("run.lr_sched", "linear_warmup_linear_lr" if linear else "constant_lr")
    if not linear:
        draft.put("run.lr_granularity", "iter")


def pair(draft: Draft) -> None:
    """NLVR2 with an input for each image."""
    if not draft.given.get("use_pair"):
        draft.refuse("use_pair", "is missing: both images in one input is not offered", "add --use_pair")
    draft.put("model.head", "pair")
    draft.put("model.num_labels", 2)


def device(draft: Draft) -> None:
    """`--no_cuda`."""
    if draft.given.get("no_cuda"):
        draft.put("run.device", "cpu")


def precision(draft: Draft) -> None:
    """`--fp16`."""
    if draft.given.get("fp16"):
        draft.put("run.precision", "fp16")


def layernorm(draft: Draft) -> None:
    """`--use_img_layernorm 0|1`."""
    if "use_img_layernorm" in draft.given:
        draft.put("model.use_img_layernorm", bool(draft.given["use_img_layernorm"]))


def captions_val(draft: Draft) -> None:
    """How many captions of an image count; with a list of candidates the flag is the length of the list."""
    if "num_captions_per_img_val" not in draft.given:
        return
    if draft.given.get("eval_caption_index_file"):
        draft.note("num_captions_per_img_val", "the file of candidates says how many there are")
    else:
        draft.put("args.num_captions_per_img_val", draft.given["num_captions_per_img_val"])


def caption_yaml(draft: Draft) -> None:
    """The model's head, and that the files of the splits are those that the data set names."""
    draft.put("model.head", "caption")
    for split in ("train", "val"):
        name = draft.given.get(f"{split}_yaml", f"{split}.yaml")
        if name != f"{split}.yaml":
            way_out = "declare a data set of the shape region_caption"
            draft.refuse(f"{split}_yaml", f"'{name}' is not what the data set has, {split}.yaml", way_out)


def tag_place(draft: Draft) -> None:
    """Where the positions of tags begin: the data set's matter and the model's."""
    if "max_seq_a_length" in draft.given or draft.trains:
        draft.put("args.max_seq_a_length", draft.value("max_seq_a_length"))
        draft.put("model.max_seq_a_length", draft.value("max_seq_a_length"))


def _window(draft: Draft) -> int:
    return max(int(draft.given.get("gradient_accumulation_steps", 1)), 1)


RULES: dict[str, Callable[[Draft], None]] = {
    rule.__name__: rule
    for rule in (
        *(
            splits,
            weights,
            teacher,
            data_dir,
            output_dir,
            label_file,
            width,
            length,
            warmup,
            scheduler,
            pair,
            device,
            precision,
        ),
        *(layernorm, captions_val, caption_yaml, tag_place),
    )
}


WHERE = "import-args"
SCRIPT = re.compile(r"(run_\w+)\.py$")
MISREAD = re.compile("\u00c2(?=[\u00a0\\s])|[\u00a0\ufeff\u200b]")
"""No-break spaces, also those that were read in the wrong encoding."""
CONTINUED = re.compile(r"\\[ \t]*(?:\r?\n|$)|\r?\n(?=[ \t]*-)")
"""The end of a line that is continued: with a backslash, or before a line of flags."""
OPERATOR = re.compile(r"[();<>|&]+")


@dataclass(frozen=True)
class UpstreamCommand:
    """A script of upstream's, its words, and the words before and after them, which are left out."""

    script: str
    words: tuple[str, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def find_command(words: Sequence[str]) -> UpstreamCommand:
    """The command in words of a shell, or in one text; raises UsageError for none, several, and other scripts."""
    given = list(words)
    if len(given) == 1 and re.search(r"\s", given[0]):
        return find_in_text(given[0])
    return split_command([MISREAD.sub(" ", word).strip() for word in given if word.strip()])


def find_in_text(text: str) -> UpstreamCommand:
    """The command in a text, such as a page of commands with one of them that is upstream's; raises UsageError."""
    lines = CONTINUED.sub(" ", MISREAD.sub(" ", text)).splitlines()
    found = [words for line in lines if (words := split_line(line)) and any(map(SCRIPT.search, words))]
    if len(found) > 1:
        raise UsageError(WHERE, f"the text holds {len(found)} commands", "give one at a time")
    return split_command(found[0] if found else split_line(" ".join(lines)))


def split_line(line: str) -> list[str]:
    """The words of a line as a shell sees them, operators by themselves; raises UsageError for a quote left open."""
    reader = shlex.shlex(line, posix=True, punctuation_chars=True)
    reader.whitespace_split, reader.commenters = True, "#"
    try:
        return list(reader)
    except ValueError as error:
        raise UsageError(WHERE, f"cannot be read: {str(error).lower()}", "close the quotes") from error


def split_command(words: Sequence[str]) -> UpstreamCommand:
    """Words → script, its words and what is around them; raises UsageError where no script is among them."""
    at = next((number for number, word in enumerate(words) if SCRIPT.search(word)), None)
    if at is None:
        way_out = "e.g. lavis-ext import-args -- python oscar/run_vqa.py --do_train …"
        raise UsageError(WHERE, "names no script run_….py", way_out)
    match = SCRIPT.search(words[at])
    script = match[1] if match else ""
    if script not in load_table():
        raise UsageError(
            f"{WHERE} {PurePosixPath(words[at])}", "is no script that is known", nearest(script, load_table())
        )
    rest = list(words[at + 1 :])
    end = next((number for number, word in enumerate(rest) if OPERATOR.fullmatch(word)), len(rest))
    if end < len(rest) and ">" in rest[end] and end and rest[end - 1] in ("1", "2", "&"):
        end -= 1  # the number of a stream, as in 2>&1
    return UpstreamCommand(script, tuple(rest[:end]), tuple(words[:at]), tuple(rest[end:]))
