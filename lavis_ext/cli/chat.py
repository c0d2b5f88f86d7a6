"""`lavis-ext chat`: a model answers line by line, about pictures; nothing is written.

One that reads conversations has all turns before it; others caption the picture, and answer each question by itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_ext.cli.verb import REQUIRED, Answer, Options, examples, flag, to_stderr, to_stdout
from lavis_ext.common.config.decode import ConfigDecoder, read_sections
from lavis_ext.common.config.resolve import find_config, load_config, merge, model_defaults, parse_options
from lavis_ext.common.config.schema import ModelConfig, RunConfig
from lavis_ext.common.errors import ConfigError, IntegrityError, UsageError, nearest
from lavis_ext.common.files import expanded, not_there, read_bounded
from lavis_ext.common.names import NAMES
from lavis_ext.common.secrets import printable
from lavis_ext.common.wording import counted, human
from lavis_ext.tasks.settings import InstructConfig, VqaConfig, WritingConfig

if TYPE_CHECKING:
    from torch import Tensor

    from lavis_ext.models.base_model import BaseModel

CHATTED = ("blip2_vicuna",)
"""Architectures that are asked in the frame of a conversation, not by `QUESTION`."""
QUESTION = "Question: {} Answer:"
LENGTHS = ("num_beams", "max_len", "min_len")
LARGEST = 1 << 28
"""Bytes of a picture at most: a file may be as large as it likes, and need not be a picture."""


@dataclass(frozen=True)
class Setup:
    """What a file gives for a conversation: model, processors, and arguments of `generate` and `predict_answers`."""

    model: ModelConfig
    vis: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"
    captions: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """One output of the model; `question` is empty for the caption, `image` names the pictures so far."""

    image: str
    question: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Chat(Options):
    """Flags of `chat`."""

    cfg_path: str = flag(REQUIRED, metavar="F", help="a run file, or the YAML of a model")
    image: str | None = flag(None, metavar="F", help="the picture; a model of conversations needs none")
    checkpoint: str | None = flag(None, metavar="DIR", help="weights: a checkpoint, or the folder of a run (its best)")
    question: str | None = flag(
        None, metavar="TEXT", help="ask this and end; without it, questions are read line by line"
    )
    json: bool = False


@examples(
    "chat --cfg-path run.yaml --checkpoint output/my-run --image photo.jpg",
    "chat --cfg-path run.yaml --image photo.jpg --question 'What is it?'",
)
def chat(args: Chat) -> Answer:
    """Answer `--question`; without it, each line of standard input at once, and caption the picture first.

    A model of conversations has what was said before, and writes no caption. The line `/image PATH` adds a picture to
    the next question (for other models it takes the place of the first), `/reset` begins anew.
    """
    # what is wrong with the arguments is told before anything that takes seconds
    picture = None if args.image is None else (args.image, read_image(args.image))
    if args.question is not None:
        require_asked(args.question)
    setup = read_setup(args.cfg_path, list(args.options))
    if args.checkpoint is not None:
        setup = with_weights(setup, args.checkpoint)
    if picture is None and needs_picture(setup.model):
        raise UsageError("--image", f"{setup.model.arch} talks about a picture", "name one: --image FILE")
    talk = Conversation(setup, picture)
    if args.question is not None:
        turn = talk.answer(args.question)
        return Answer([turn.answer], [asdict(turn)])
    converse(talk, asked_lines(), write_json_line if args.json else write_answer)
    return Answer()


def read_setup(path: str, options: list[str], checkpoint: str | None = None) -> Setup:
    """The setup of a run file, or of the YAML of a model; `checkpoint` goes over its weights. Raises ConfigError."""
    tree, _ = read_sections(find_config(path))
    setup = setup_of_run(path, options) if "run" in tree else setup_of_model(path, options)
    return setup if checkpoint is None else with_weights(setup, checkpoint)


def with_weights(setup: Setup, checkpoint: str) -> Setup:
    """The setup with a checkpoint, or the best of a run, as its weights; raises UsageError."""
    model = replace(setup.model, load_finetuned=True, finetuned=str(find_weights(checkpoint)))
    return replace(setup, model=model)


def needs_picture(model: ModelConfig) -> bool:
    """Whether the keys of a model of ours tell that it reads no conversations; others are asked once they are built."""
    from lavis_ext.models.settings import Blip2AnyConfig, Blip2LanguageConfig

    speaks = isinstance(model, Blip2LanguageConfig) and not isinstance(model, Blip2AnyConfig)
    return speaks and model.arch in NAMES["model"]


def require_asked(question: str) -> str:
    """The question without blanks around it; raises UsageError for an empty one."""
    if not (asked := question.strip()):
        raise UsageError("--question", "is empty", "write a question")
    return asked


def setup_of_run(path: str, options: list[str]) -> Setup:
    """From a run file: the `eval` processors of its first data set, and the searches of its task."""
    config = load_config(path, options)
    if config.model is None:
        raise ConfigError(path, "has no model section", "add `model:` with arch and model_type")
    _, preprocess = model_defaults(config.model.arch, config.model.model_type)
    datasets = list(config.datasets.values())
    vis = datasets[0].vis_processor.eval if datasets else None
    text = datasets[0].text_processor.eval if datasets else None
    captions, answers = searches(config.run)
    return Setup(
        model=config.model,
        vis={"name": vis.name, **vis.args} if vis else evaluating(preprocess, "vis_processor"),
        text={"name": text.name, **text.args} if text else evaluating(preprocess, "text_processor"),
        device=config.run.device,
        captions=captions,
        answers=answers,
    )


def setup_of_model(path: str, options: list[str]) -> Setup:
    """From a file with `model:` and `preprocess:` sections, as those of the models folder."""
    tree = merge(read_sections(find_config(path))[0], parse_options(options))
    decoder = ConfigDecoder()
    config = decoder.build(ModelConfig, tree.get("model") or {}, "model")
    decoder.close()
    if config is None:
        raise ConfigError(path, "has no model section", "add `model:` with arch and model_type")
    preprocess = tree.get("preprocess") or {}
    return Setup(config, evaluating(preprocess, "vis_processor"), evaluating(preprocess, "text_processor"))


def evaluating(preprocess: dict[str, Any], kind: str) -> dict[str, Any]:
    """The `eval` side of a processor in a `preprocess:` section; {} without one."""
    return dict((preprocess.get(kind) or {}).get("eval") or {})


def searches(run: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments for captions and for answers that a run names: those of its own task, else the models'."""
    if not isinstance(run, WritingConfig):
        return {}, {}
    penalty = {} if run.length_penalty is None else {"length_penalty": run.length_penalty}
    if isinstance(run, VqaConfig):
        return {}, {**{name: getattr(run, name) for name in LENGTHS}, **penalty, "prompt": run.prompt}
    named = {"num_beams": run.num_beams, "max_length": run.max_len, "min_length": run.min_len, **penalty}
    writes = isinstance(run, InstructConfig) or (getattr(run, "eval_task", None) or run.task) == "captioning"
    return (named if writes else {}), {}


def find_weights(path: str) -> Path:
    """A checkpoint as it is named; of the folder of a run its best one, else its newest. Raises UsageError."""
    folder = expanded(path)
    if not folder.exists():
        way_out = "name a checkpoint or the folder of a run"
        raise UsageError(f"--checkpoint {path}", *not_there(path, otherwise=way_out))
    from lavis_ext.runners.checkpoint import pointed

    if found := pointed(folder, "best") or pointed(folder, "latest"):
        return found
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        runs = sorted(one.parent for one in folder.glob("*/run.json"))
        held = [(found, run) for run in runs if (found := pointed(run, "best") or pointed(run, "latest"))]
        what = f"is a folder of {counted(len(runs), 'run')}" if runs else "holds no checkpoint"
        what += "" if held or not runs else ", none with a checkpoint"
        newest = max(((found.stat().st_mtime, run) for found, run in held), default=None)
        way_out = f"name one of them, {newest[1]}" if newest else "name a checkpoint, or a run's folder"
        raise UsageError(path, what, way_out)
    if folder.suffix in (".yaml", ".yml"):
        raise UsageError(path, "is a YAML, and no checkpoint", "name a checkpoint, or the folder of a run")
    return folder


def read_image(path: str, said: str = "--image") -> Any:
    """A picture as uint8 [H,W,3]; raises UsageError if it cannot be read, IntegrityError if it is no picture."""
    from lavis_ext.datasets.readers.decode import decode_rgb
    from lavis_ext.datasets.readers.faults import SampleError

    try:
        data = read_bounded(expanded(path), LARGEST + 1)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UsageError(f"{said} {path}", why, "name a picture that can be read") from error
    if len(data) > LARGEST:
        raise IntegrityError(f"{said} {path}", f"is larger than {human(LARGEST)}, as no picture is", "name a picture")
    try:
        return decode_rgb(data, path, path)
    except SampleError as error:
        raise IntegrityError(f"{said} {path}", error.why, "name a JPEG, PNG, WebP, GIF or BMP") from error


class Conversation:
    """A model, the pictures and what was said so far; raises ConfigError if the model generates no text."""

    def __init__(self, setup: Setup, picture: tuple[str, Any] | None) -> None:
        from lavis_ext.models import load_preprocess

        if not setup.vis:
            raise ConfigError("preprocess.vis_processor.eval", "is not named", "name the processor of the pictures")
        vis, text = load_preprocess({"vis_processor": {"eval": setup.vis}, "text_processor": {"eval": setup.text}})
        self.setup, self.vis, self.text = setup, vis["eval"], text["eval"]
        self.model: Any = load_speaker(setup)
        self.converses = bool(getattr(self.model, "converses", False))
        if picture is None and not self.converses:
            raise UsageError("--image", f"{setup.model.arch} talks about a picture", "name one: --image FILE")
        self.begun_with = picture
        self.turns: list[dict[str, str]] = []
        self.names: list[str] = []
        self.images: list[Tensor] = []
        self.reset()

    def reset(self) -> None:
        """Forget all that was said, and all pictures but that of the beginning."""
        self.turns, self.names, self.images = [], [], []
        if self.begun_with is not None:
            self.add(*self.begun_with)

    def add(self, name: str, image: Any) -> None:
        """A picture (uint8 [H,W,3]) for the next question; the only one for a model of single questions."""
        if not self.converses:
            self.names, self.images = [], []
        self.names.append(name)
        self.images.append(self.vis(image).to(self.model.device))

    def said(self, question: str, answer: str) -> Turn:
        """A turn for the answer, with the names of the pictures."""
        return Turn(", ".join(self.names), question, answer)

    def caption(self) -> Turn:
        """The caption of the picture."""
        return self.said("", self.model.generate({"image": self.images[0].unsqueeze(0)}, **self.setup.captions)[0])

    def answer(self, question: str) -> Turn:
        """The answer to a question; raises UsageError for an empty one."""
        from lavis_ext.models.text import ChatPrompter

        question = require_asked(question)
        if self.converses:
            return self.said(question, self._go_on(question))
        image, asked = self.images[0].unsqueeze(0), self.text(question)
        if self.setup.model.arch in CHATTED:
            turn = {"image": image, "prompt": f"{asked}{ChatPrompter.turn}"}
            return self.said(question, self.model.generate(turn, **self.setup.captions)[0])
        samples = {"image": image, "text_input": [asked]}
        return self.said(question, self.model.predict_answers(samples, **{"prompt": QUESTION, **self.setup.answers})[0])

    def _go_on(self, question: str) -> str:
        """The answer after all turns so far, which are kept; new pictures stand where the question marks them."""
        import torch

        from lavis_ext.datasets.readers.conversations import IMAGE

        new = len(self.images) - sum(turn["content"].count(IMAGE) for turn in self.turns)
        if question.count(IMAGE) not in (0, new):
            what = f"{new} new pictures, and {question.count(IMAGE)} {IMAGE} in the question"
            raise UsageError("the question", what, f"write none, or one {IMAGE} for each")
        content = question if IMAGE in question else f"{IMAGE}\n" * new + question
        turns = [*self.turns, {"role": "user", "content": content}]
        samples: dict[str, Any] = {"conversations": [turns], "image_counts": [len(self.images)]}
        if self.images:
            samples["image"] = torch.stack(self.images)
        said: str = self.model.generate(samples, **self.setup.captions)[0]
        self.turns = [*turns, {"role": "assistant", "content": said.replace(IMAGE, " ")}]
        return said


def load_speaker(setup: Setup) -> BaseModel:
    """The model in eval mode on its device; raises ConfigError for an architecture that generates no text."""
    from lavis_ext.common.registry import models
    from lavis_ext.models.zoo import build_model, warn_if_random
    from lavis_ext.runners.device import choose_cpu

    kind = models.get(setup.model.arch)
    lacking = [name for name in ("generate", "predict_answers") if not hasattr(kind, name)]
    if lacking:
        what = f"'{setup.model.arch}' has no `{lacking[0]}`: it generates no text"
        raise ConfigError("model.arch", what, "take a model with a language model, e.g. blip2_opt")
    warn_if_random(setup.model, "name --checkpoint RUN")
    device = "cpu" if choose_cpu(setup.device) else "cuda"
    return build_model(setup.model).eval().to(device)


COMMANDS = ("/image", "/reset")


def converse(talk: Conversation, lines: Iterable[str], write: Callable[[Turn], None]) -> None:
    """Caption first, then an answer to every line that is not blank, nor one of `COMMANDS`.

    A line that cannot be done is an error, which a person at a terminal sees and goes on from.
    """
    if not talk.converses:
        write(talk.caption())
    for line in filter(str.strip, lines):
        try:
            if not obeyed(talk, line.strip(), write):
                write(talk.answer(line))
        except (ConfigError, UsageError, IntegrityError) as error:  # a ConfigError: a conversation that got too long
            if not sys.stdin.isatty():
                raise
            to_stderr(str(error))


def obeyed(talk: Conversation, line: str, write: Callable[[Turn], None]) -> bool:
    """Whether a line was a command, which is then done. Raises UsageError, IntegrityError."""
    word, _, rest = line.partition(" ")
    if word not in COMMANDS:
        if word == line and word.startswith("/") and word[1:].isalpha():
            raise UsageError(word, "no such command", nearest(word, COMMANDS))
        return False
    if word == "/reset":
        talk.reset()
        to_stderr("all that was said is forgotten")
        return True
    name = rest.strip().strip("'\"")
    if not name:
        raise UsageError(word, "names no picture", "write /image FILE")
    talk.add(name, read_image(name, word))
    if talk.converses:
        to_stderr(f"{name} goes with the next question")
    else:
        write(talk.caption())
    return True


def asked_lines() -> Iterable[str]:
    """Lines of standard input until it ends; a terminal shows a prompt."""
    person = sys.stdin.isatty()
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="backslashreplace")
    while True:
        if person:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def write_answer(turn: Turn) -> None:
    """Write an answer as a line; characters that the terminal lacks are written as escapes."""
    to_stdout(printable(turn.answer))


def write_json_line(turn: Turn) -> None:
    """One object a line."""
    to_stdout(json.dumps(asdict(turn)))
