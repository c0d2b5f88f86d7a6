"""The `args:` of a data set, for each shape of pictures and texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lavis_ext.common.config.decode import ConfigDecoder, Count, Natural, Positive, Rate, join


@dataclass(frozen=True, kw_only=True)
class ImageKeys:
    """How pictures are named, and where they are looked up."""

    layouts: list[str] | None = None
    image_key: str = "image"
    image_pattern: str | None = None


@dataclass(frozen=True, kw_only=True)
class CaptionKeys(ImageKeys):
    """`image_caption`, `image_text_retrieval`."""

    caption_key: str = "caption"
    prefix_split: bool = False
    """Cut a training caption at a random word into `text_input` and `text_output` (VPGTrans)."""
    image_id: Literal["running", "raw"] = "running"
    """LAVIS' running number in training, or the record's own id."""
    raw_caption: bool = False
    """Captions without the text processor (LAVIS' rule for MiniGPT-4's)."""


@dataclass(frozen=True, kw_only=True)
class LabelKeys(ImageKeys):
    """`image_text_label`."""

    labels: list[Any] = field(default_factory=list)
    """The classes by number."""
    text_key: str = "sentence"
    label_key: str = "label"

    def examine(self, decoder: ConfigDecoder, key: str) -> None:
        """Note an error if there are no classes."""
        if not self.labels:
            decoder.note(join(key, "labels"), "names no classes", "write for example `labels: ['False', 'True']`")


@dataclass(frozen=True, kw_only=True)
class PairKeys(LabelKeys):
    """`paired_images`."""

    swap: bool = True
    """Whether the pictures of a training pair are swapped at random."""


@dataclass(frozen=True, kw_only=True)
class VqaKeys(ImageKeys):
    """`vqa`."""

    answer_key: str = "answer"
    answer_weight: Rate = 1.0
    """Of a single answer (LAVIS: 0.2 for Visual Genome)."""
    eval_keys: list[Literal["answer", "choices", "correct_choice_idx", "direct_answers"]] = field(default_factory=list)
    """Keys of a row that an evaluation sample has too, None where the row lacks them."""
    image_patterns: list[str] = field(default_factory=list)
    """File names made from a row's `image_id`; the first that exists is used."""


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
    shuffle_buffer: Natural = 10_000
    """Samples that are shuffled at a time; 0: no shuffling."""
    seed: Natural = 0
    epoch_size: Count | None = None
    """Samples in an epoch; None: all."""
    cache_gb: Positive = 50.0
    """Gigabytes (10⁹ bytes) of the cache for shards in an object store; the processes of a machine share it."""
    cache_dir: str = ""
    """Its folder, on a disk of this machine; "": `.lavis_ext/shards` below the cache root."""
    shards_ahead: Count = 2
    """Shards of an object store that are fetched before they are needed, at a time."""

    def examine(self, decoder: ConfigDecoder, key: str) -> None:
        """Note an error if only one of the two keys is given."""
        if (self.captions_key is None) != (self.scores_key is None):
            decoder.note(key, "captions_key and scores_key belong together", "give both, or none")
        if self.sample_key and (self.captions_key or self.prefix_split):
            decoder.note(key, "sample_key says all that a sample has", "leave out captions_key and prefix_split")
