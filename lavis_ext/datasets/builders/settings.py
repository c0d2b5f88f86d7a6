"""The `args:` of a data set, for each shape of pictures and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from lavis_ext.common.config.decode import Bound, ConfigDecoder, Count, Natural, Positive, Rate, join


@dataclass(frozen=True, kw_only=True)
class ImageKeys:
    """How pictures are named, and where they are looked up."""

    layouts: list[str] | None = None
    image_key: str = "image"
    image_pattern: str | None = None
    split_key: str | None = None
    """The key that says to which split a row belongs, where one file holds several."""
    holdout: Annotated[float, Bound(0, 0.9)] = 0.0
    """The share of the pictures that `val` has, and `train` has not, where both name the same file."""
    keep: list[str] = field(default_factory=list)
    """Keys of a row that its sample has too, as they stand: `boxes` (x, y, width, height in pixels of the file)."""
    delimiter: str | None = None
    """The sign that splits the columns of a CSV, where it is no comma."""
    encoding: str | None = None
    """That of tables and texts which are not UTF-8: `cp1252`."""

    def columns(self, split: str, known: Sequence[str]) -> dict[str, str]:
        """What rows of a split must have: argument that names a column → the column; `known` are those they have."""
        if self.image_pattern is None and self.image_key not in known and "image_id" in known:
            return {}  # `<image_id>.jpg`
        return {} if self.image_pattern else {"image_key": self.image_key}

    def examine(self, decoder: ConfigDecoder, key: str) -> None:
        """Note a sign that can split nothing, for the copy of a table is kept under it, and an unknown encoding."""
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n\0'):
            decoder.note(join(key, "delimiter"), f"{self.delimiter!r} splits no columns", "write one sign: `';'`")
        try:
            "".encode(self.encoding or "utf-8")
        except (LookupError, ValueError):
            decoder.note(join(key, "encoding"), f"{self.encoding!r} is no encoding of texts", "write e.g. `cp1252`")


@dataclass(frozen=True, kw_only=True)
class CaptionKeys(ImageKeys):
    """`image_caption`, `image_text_retrieval`."""

    caption_key: str = "caption"
    prefix_split: bool = False
    """Cut a training caption at a random word into `text_input` and `text_output` (VPGTrans)."""
    image_id: Literal["running", "raw"] = "running"
    """LAVIS' running number in training, or the record's own id."""
    instruct: bool = False
    """A training caption is `text_output`, and `text_input` what the text processor makes of "" (InstructBLIP)."""
    raw_caption: bool = False
    """Captions without the text processor (LAVIS' rule for MiniGPT-4's)."""

    def columns(self, split: str, known: Sequence[str]) -> dict[str, str]:
        """As of all shapes; a caption in training, and an id where that is to be kept."""
        found = super().columns(split, known)
        if split == "train":
            found |= {"caption_key": self.caption_key}
            found |= {"image_id": "image_id"} if self.image_id == "raw" else {}
        return found


@dataclass(frozen=True, kw_only=True)
class LabelKeys(ImageKeys):
    """`image_text_label`."""

    labels: list[Any] = field(default_factory=list)
    """The classes by number."""
    text_key: str = "sentence"
    label_key: str = "label"
    prompt: str = ""
    """A question about the sentence, through the text processor: `prompt`, beside which `label` is a text (LAVIS)."""
    answers: list[Any] = field(default_factory=list)
    """The answers to it, in the order of `labels`."""

    def columns(self, split: str, known: Sequence[str]) -> dict[str, str]:
        """As of all shapes, and a sentence."""
        return {**super().columns(split, known), "text_key": self.text_key}

    def examine(self, decoder: ConfigDecoder, key: str) -> None:
        """Note an error if there are no classes."""
        super().examine(decoder, key)
        if not self.labels:
            decoder.note(join(key, "labels"), "names no classes", "write for example `labels: ['False', 'True']`")
        if bool(self.prompt) != bool(self.answers) or len(self.answers) not in (0, len(self.labels)):
            what = f"{len(self.answers)} answers to {len(self.labels)} labels, with prompt '{self.prompt}'"
            decoder.note(join(key, "answers"), what, "give a prompt and one answer for each label, or neither")


@dataclass(frozen=True, kw_only=True)
class PairKeys(LabelKeys):
    """`paired_images`."""

    swap: bool = True
    """Whether the pictures of a training pair are swapped at random."""

    def columns(self, split: str, known: Sequence[str]) -> dict[str, str]:
        """As of classes; both pictures are in `images`."""
        return {key: column for key, column in super().columns(split, known).items() if key != "image_key"}


@dataclass(frozen=True, kw_only=True)
class VqaKeys(ImageKeys):
    """`vqa`."""

    question_key: str = "question"
    question: str | None = None
    """What is asked about every picture, where rows have no questions: of classes, `What is this?`"""
    answer_key: str = "answer"
    answer_weight: Rate = 1.0
    """Of a single answer (LAVIS: 0.2 for Visual Genome)."""
    instruct: bool = False
    """A training sample has one of its answers, drawn, as `text_output` (InstructBLIP)."""
    eval_keys: list[Literal["answer", "choices", "correct_choice_idx", "direct_answers"]] = field(default_factory=list)
    """Keys of a row that an evaluation sample has too, None where the row lacks them."""
    image_patterns: list[str] = field(default_factory=list)
    """File names made from a row's `image_id`; the first that exists is used."""

    def columns(self, split: str, known: Sequence[str]) -> dict[str, str]:
        """As of all shapes, and a question; an answer in training."""
        found = {} if self.image_patterns else super().columns(split, known)
        found |= {} if self.question else {"question_key": self.question_key}
        return {**found, "answer_key": self.answer_key} if split == "train" else found


@dataclass(frozen=True, kw_only=True)
class ConversationKeys(ImageKeys):
    """`conversation`."""

    question_key: str = "question"
    answer_key: str = "caption"
    """Of rows without turns: what is asked and what is to be said; of several, training draws one."""
    prompts: list[str] = field(default_factory=list)
    """What is asked where a row has no question: training draws one, else the first."""

    def columns(self, split: str, known: Sequence[str]) -> dict[str, str]:
        """Nothing where rows have turns, some perhaps without pictures; else an answer in training, and a question."""
        if {"conversations", "unreadable"} & set(known):
            return {}
        found = super().columns(split, known)
        found |= {} if self.prompts else {"question_key": self.question_key}
        return {**found, "answer_key": self.answer_key} if split == "train" else found


@dataclass(frozen=True, kw_only=True)
class ShardKeys:
    """`image_text_shards`."""

    caption_key: str = "caption"
    """The text in a sample's JSON (of a list, one of the first two: LAVIS' rule), or `.txt` for the text member."""
    captions_key: str | None = None
    scores_key: str | None = None
    """With `captions_key`: the caption that has the highest score (LAION-COCO)."""
    sample_key: str = ""
    """The object in a sample's JSON whose keys a sample has beside `image`: `sample` in shards that `pack` made."""
    prefix_split: bool = False
    instruct: bool = False
    """The caption is `text_output`, and `text_input` what the text processor makes of "" (InstructBLIP)."""
    shuffle_buffer: Natural = 10_000
    """Samples that are shuffled at a time; 0: no shuffling."""
    seed: Natural = 0
    epoch_size: Count | None = None
    """Samples in an epoch; None: all."""
    exact: bool = False
    """Whether an epoch has each sample once over all processes: without it, up to a batch of each process repeats."""
    cache_gb: Positive = 50.0
    """Gigabytes (10⁹ bytes) of the cache for shards in an object store; the processes of a machine share it."""
    cache_dir: str = ""
    """Its folder, on a disk of this machine; "": `.lavis_ext/shards` below the cache root."""
    shards_ahead: Count = 2
    """Shards of an object store that are fetched before they are needed, at a time."""

    def examine(self, decoder: ConfigDecoder, key: str) -> None:
        """Note two keys that belong together of which one is given, and two that exclude each other."""
        if self.exact and self.epoch_size is not None:
            decoder.note(join(key, "exact"), "goes with whole epochs only", "leave out epoch_size, or exact")
        if (self.captions_key is None) != (self.scores_key is None):
            decoder.note(key, "captions_key and scores_key belong together", "give both, or none")
        if self.sample_key and (self.captions_key or self.prefix_split):
            decoder.note(key, "sample_key says all that a sample has", "leave out captions_key and prefix_split")
