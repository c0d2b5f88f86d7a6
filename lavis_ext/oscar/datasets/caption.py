"""The shape `region_caption` (COCO and NoCaps), and what captions by image share with the retrieval shapes.

`CaptionRows` and `PerCaption` are data sets of images with several captions; below are readers of Oscar's and volta's
files of captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_ext.common.config.decode import read_yaml
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.common.files import decode_json, read_errors, read_file
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Batch, Dataset, Sample
from lavis_ext.datasets.builders.context import BuildContext
from lavis_ext.datasets.datasets.base_dataset import draw_below
from lavis_ext.datasets.readers.annotations import Annotations
from lavis_ext.datasets.readers.parse import OneFile, Row, parse_json, parse_rows
from lavis_ext.datasets.readers.tables import read_text
from lavis_ext.features.formats.arrays import load_tensors
from lavis_ext.features.layout import key_of
from lavis_ext.features.store import ReadOptions
from lavis_ext.oscar.datasets.base import (
    RegionDataset,
    choose_positions,
    hide,
    input_lengths,
    listed,
    mask_rows,
    pad_rows,
    region_rows,
    tag_counts,
)
from lavis_ext.oscar.datasets.opening import ImageTags, Opening, RegionParts, find_naming, region_splits
from lavis_ext.oscar.datasets.regions import Ids, ImageRows, RegionPlace, TagTable, tag_table, tag_text
from lavis_ext.oscar.datasets.settings import RegionCaptionKeys


@builders.register("region_caption", config=RegionCaptionKeys)
def region_caption(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """Oscar's `{split}.yaml`, which names `feature`, `label`, `hw` and `caption` files in its folder.

    `train` gives one caption a sample, every other split one image.
    `args.features` replaces `feature`.
    """
    return region_splits(config, context, _make)


@dataclass(frozen=True)
class CaptionFiles:
    """The files that a split's YAML names, None where it names none or where it is not there."""

    home: Path
    feature: Path
    label: Path | None
    hw: Path | None
    caption: Path | None
    naming: ImageTags | None = None


def _make(opening: Opening) -> Dataset:
    sides = read_sides(opening.files()[0])
    tags = None if sides.label is None else tag_table(sides.label)
    if opening.given:
        regions = opening.regions()
    else:
        regions = opening.regions([sides.feature], ReadOptions(labels=sides.label, sizes=sides.hw))
    if opening.split == "train":
        if sides.caption is None:
            raise IntegrityError(str(sides.home), "names no file of captions that is there", "it is needed to train")
        rows: Any = Annotations([sides.caption])
    else:
        ids = tags.ids if tags else [store.index.id_at(n) for store in regions.stores for n in range(len(store))]
        rows = ImageRows(ids, (sides.home,), domains(sides.home))
    parts = RegionParts(opening.config, opening.split, rows, opening.args, regions, opening.encoder())
    make = RegionCaptionDataset if parts.training else RegionCaptionEvalDataset
    return make(parts, tags, sides.caption, sides.naming)


def read_sides(home: Path) -> CaptionFiles:
    """The files of a split's YAML, below its folder; raises ConfigError where it names no features."""
    tree, _ = read_yaml(home)
    named = {key: home.parent / str(tree[key]) for key in ("feature", "label", "hw", "caption") if tree.get(key)}
    if "feature" not in named:
        raise ConfigError(str(home), "names no `feature` file", "name another YAML")
    there = {key: path for key, path in named.items() if path.is_file()}
    label, hw, caption = (there.get(key) for key in ("label", "hw", "caption"))
    return CaptionFiles(home, named["feature"], label, hw, caption, find_naming(home, tree))


def domains(home: Path) -> dict[str, Row]:
    """`domain` by image id, from NoCaps' `nocaps_{split}_image_info.json` beside the YAML; empty without it."""
    path = home.with_name(f"nocaps_{home.stem}_image_info.json")
    if not path.is_file():
        return {}
    value = parse_json(read_text(path), path)
    rows = value.get("images", []) if isinstance(value, dict) else value
    known = [row for row in rows if isinstance(row, dict) and row.get("domain")]
    return {key_of(str(row.get("id", row.get("image_id")))): {"domain": row["domain"]} for row in known}


@dataclass(frozen=True, eq=False)
class RegionCaptionEvalDataset(RegionDataset):
    """An image a sample: `od_ids`, `regions`, `image_id`, `instance_id`; its captions are `references()`."""

    tags: TagTable | None = None
    caption_file: Path | None = None
    naming: ImageTags | None = None

    def image_id(self, row: Row) -> int | str:
        """The id of result files: a number where it is one."""
        text = str(row["image_id"])
        return int(text) if text.isascii() and text.isdigit() else text

    def od_ids(self, row: Row, place: RegionPlace) -> Ids:
        """An image's tags with [SEP] behind them, in what the caption leaves of the length; nothing without tags."""
        args, words = self.parts.args, self.parts.encoder.words
        if not args["add_od_labels"]:
            return []
        found = self.tags.find(row["image_id"]) if self.tags else tag_text(self.parts.regions.record(place).labels)
        kept = words.encode(found or "")[: max(args["max_seq_length"] - args["max_seq_a_length"] - 1, 0)]
        return [*kept, words.sep] if kept else []

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """Tags, regions and ids."""
        place = self.place(row["image_id"], index)
        found: Sample = {"regions": place, "od_ids": self.od_ids(row, place), "image_id": self.image_id(row)}
        return {**found, "instance_id": row["instance_id"]}

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """`od_ids` int64 [B,O], `od_mask` bool [B,O], `img_feats` [B,R,D], `img_mask` bool [B,R], ids as lists.

        Where the YAML names detections for it (`cbs_box` and its like, as NoCaps' does), `constraints` too.
        """
        places: list[Any] = [sample.get("regions", sample.get("img_feats")) for sample in samples]
        feats, mask = region_rows(places, self.parts.regions)
        tags = [sample["od_ids"] for sample in samples]
        batch: Batch = {"od_ids": pad_rows(tags, self.pad), "od_mask": mask_rows([len(ids) for ids in tags]).bool()}
        batch |= {"img_feats": feats, "img_mask": mask.bool(), **listed(samples, self.ids)}
        return batch if self.naming is None else {**batch, "constraints": [self.constraints(one) for one in samples]}

    def constraints(self, sample: Sample) -> list[list[str]]:
        """Constraints of the image's caption: things, each as the words for it (see `ImageTags`)."""
        return self.naming.of(sample["image_id"]) if self.naming else []

    def references(self) -> dict[int | str, list[str]]:
        """Captions by image id for the images in use; empty without a file of captions."""
        if self.caption_file is None:
            return {}
        used = {self.image_id(self.row(index)) for index in range(len(self))}
        found: dict[int | str, list[str]] = {}
        for row in parse_rows(self.caption_file):
            if (key := self.image_id(row)) in used:
                found.setdefault(key, []).append(row["caption"])
        return found


@dataclass(frozen=True, eq=False)
class RegionCaptionDataset(RegionCaptionEvalDataset):
    """A caption with some of its words masked, with the tags and regions of its image."""

    def measured(self) -> np.ndarray:
        """Regions, tags where they are in a file of their own, and tokens of the caption."""
        regions, words = input_lengths(self, self.rows.words("caption")).T
        if self.tags is None or not self.parts.args["add_od_labels"]:
            return np.stack([regions, words], 1)
        tags = np.minimum(tag_counts(self, self.tags), self.parts.args["max_seq_length"])
        return np.stack([regions, tags, words], 1).astype(np.int32)

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """`input_ids` of the caption with masked words, `masked_pos` (their positions) and `masked_ids` (the words).

        Of n tokens with [CLS] and [SEP], max(1, round(mask_prob · n)) and at most `max_masked_tokens` are masked; the
        [SEP] may be one of them, so that a model learns to end.
        """
        args, words = self.parts.args, self.parts.encoder.words
        text = words.encode(self.text(row, "caption", index))
        ids, _ = self.parts.encoder.joined(text[: args["max_seq_a_length"] - 2], [])
        count = min(max(round(args["mask_prob"] * len(ids)), 1), args["max_masked_tokens"])
        places = choose_positions(range(1, len(ids)), count, rng)
        more: Sample = {"input_ids": hide(ids, places, words, rng), "masked_pos": places}
        more["masked_ids"] = [ids[place] for place in places]
        return {**super().fields(row, index, rng), **more}

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """What evaluation has, `input_ids`, `token_type_ids` and `position_ids` int64 [B,T] of captions, then tags,
        `attention_mask` uint8 [B,S,S], `masked_pos` bool [B,T] and `masked_ids` int64 of all masked words in order.

        T is the longest caption and the longest tags together; the tags' positions begin at `max_seq_a_length`, as in
        generation, however short the captions are.
        """
        batch = super().collater(samples)
        texts, tags = pad_rows((sample["input_ids"] for sample in samples), self.pad), batch["od_ids"]
        begin = self.parts.args["max_seq_a_length"]
        positions = torch.cat([torch.arange(texts.shape[1]), torch.arange(tags.shape[1]) + begin])
        seen = mask_rows([len(sample["input_ids"]) for sample in samples]).bool()
        ids = torch.cat([texts, tags], 1)
        masked = torch.zeros(ids.shape, dtype=torch.bool)
        for row, sample in zip(masked, samples, strict=True):
            row[sample["masked_pos"]] = True
        return {
            **batch,
            "input_ids": ids,
            "token_type_ids": torch.cat([torch.zeros_like(texts), batch["od_mask"].long()], 1),
            "position_ids": positions.expand(len(samples), -1).contiguous(),
            "attention_mask": seq2seq_mask(seen, torch.cat([batch["od_mask"], batch["img_mask"]], 1)),
            "masked_pos": masked,
            "masked_ids": torch.tensor([number for sample in samples for number in sample["masked_ids"]]),
        }


def seq2seq_mask(text: Tensor, context: Tensor) -> Tensor:
    """uint8 [B,S,S] from bool [B,A] and [B,C], S = A + C: who (row) sees whom (column).

    A word sees the words before it and itself, and all of the context; the context sees itself, and no word.
    """
    causal = torch.ones(text.shape[1], text.shape[1], dtype=torch.bool).tril()
    words = text[:, :, None] & text[:, None, :] & causal
    outward = text[:, :, None] & context[:, None, :]
    inward = torch.zeros(outward.shape, dtype=torch.bool).transpose(1, 2)
    around = context[:, :, None] & context[:, None, :]
    return torch.cat([torch.cat([words, outward], 2), torch.cat([inward, around], 2)], 1).to(torch.uint8)


PER_IMAGE = ("num_captions_per_img_train", "num_captions_per_img_val")
ALL = 1 << 30


@dataclass(frozen=True, eq=False)
class CaptionRows(RegionDataset):
    """Rows of one image each, with its `captions`."""

    @property
    def per_image(self) -> int:
        """How many captions of an image count."""
        value = self.parts.args[PER_IMAGE[0 if self.parts.training else 1]]
        return ALL if value is None else int(value)

    def tags(self, row: Row, place: RegionPlace) -> Ids:
        """The ids of an image's tags: of their file, else of the labels in the store."""
        if not self.parts.args["add_od_labels"]:
            return []
        text = row["tags"] if "tags" in row else tag_text(self.parts.regions.record(place).labels)
        return self.parts.encoder.words.encode(text)

    def caption_of(self, row: Row, rng: torch.Generator | None) -> str:
        """One of the captions of an image that count."""
        captions: list[str] = row["captions"]
        return captions[draw_below(min(len(captions), self.per_image), rng)]


@dataclass(frozen=True, eq=False)
class PerCaption(CaptionRows):
    """One sample for each caption that counts; images without one give none."""

    @cached_property
    def stops(self) -> np.ndarray:
        """int64 [images]: how many samples there are up to and with each image."""
        counts: np.ndarray = np.minimum(self.rows.lengths("captions"), self.per_image)
        if len(counts) < 2 or (counts == 0).any():
            what = "an image without captions" if len(counts) > 1 else "fewer than two images"
            raise IntegrityError(", ".join(map(str, self.rows.paths)), f"holds {what}", "no pair can be made of it")
        return np.cumsum(counts)

    def count(self) -> int:
        """One sample for each caption in use."""
        return int(self.stops[-1])

    def image_of(self, position: int) -> tuple[int, int]:
        """The image that a sample is of, and the number of the caption among its own."""
        image = int(np.searchsorted(self.stops, position, side="right"))
        return image, position - (int(self.stops[image - 1]) if image else 0)

    def row(self, index: int) -> Row:
        """The image that a sample is of, with its `caption`."""
        image, number = self.image_of(self.position(index))
        row: Row = self.rows[image]
        return {**row, "caption": row["captions"][number], "instance_id": str(self.position(index))}


def other_than(number: int, count: int, rng: torch.Generator | None) -> int:
    """A uniform number in 0 … count - 1 that is not `number`, by one draw."""
    drawn = draw_below(count - 1, rng)
    return drawn + (drawn >= number)


SUFFIX = "_captions.pt"
WAY_OUT = "fetch it again"


@dataclass(frozen=True)
class CaptionFile:
    """Oscar's `{split}_captions.pt`, `{image id: captions}`, and the file of `{image id: tags}` beside it, if any."""

    captions: Path
    tags: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Both files."""
        return (self.captions,) if self.tags is None else (self.captions, self.tags)

    @property
    def name(self) -> str:
        """Both names in one."""
        return "+".join(file.name for file in self.files)

    def parse(self) -> list[Row]:
        """`image_id`, `captions` (texts) and, with a file of tags, `tags`; raises IntegrityError, UnsafeError."""
        tags = None if self.tags is None else load_tensors(self.tags)
        rows: list[Row] = []
        for image_id, value in load_tensors(self.captions).items():
            row: Row = {"image_id": image_id, "captions": _texts(value, image_id, self.captions)}
            rows.append(row if tags is None else {**row, "tags": tag_text(tags.get(image_id))})
        return rows


@dataclass(frozen=True)
class AnnotationLines(OneFile):
    """volta's `{split}_ann.jsonl`: `{"sentences": […], "id": number}` a line; one row an image."""

    KIND = "captions"

    def parse(self) -> list[Row]:
        """`image_id` and `captions`, as `CaptionFile` has them; raises IntegrityError."""
        rows = parse_rows(self.path)
        for number, row in enumerate(rows, 1):
            if "id" not in row:
                raise IntegrityError(f"{self.path}:{number}", "has no id", WAY_OUT)
        return [{"image_id": row["id"], "captions": _texts(row.get("sentences"), row["id"], self.path)} for row in rows]


def caption_file(path: Path, label_type: str) -> CaptionFile | AnnotationLines:
    """A file of captions, Oscar's with the tags of one detector beside it, if they are there."""
    if path.suffix == ".jsonl":
        return AnnotationLines(path)
    tags = path.with_name(path.name.replace(SUFFIX, f"_{label_type}_labels.pt"))
    return CaptionFile(path, tags if tags != path and tags.is_file() else None)


def _texts(value: Any, image_id: Any, path: Path) -> list[str]:
    """A list of texts, or the JSON of one."""
    value = _loads(value, f"{path} image {image_id!r}") if isinstance(value, str) else value
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
        raise IntegrityError(f"{path} image {image_id!r}", "has no list of captions", WAY_OUT)
    return list(value)


def _loads(text: str, where: str) -> Any:
    try:
        return decode_json(text)
    except ValueError as error:
        raise IntegrityError(where, f"is no JSON: {error}", WAY_OUT) from error


def read_keys(path: Path) -> list[str]:
    """The image ids of `test_img_keys.tsv`, one a line; raises IntegrityError where there is none."""
    with read_errors(path):
        lines = read_file(path).decode("utf-8").splitlines()
    keys = [line.split("\t")[0].strip() for line in lines if line.strip()]
    if not keys:
        raise IntegrityError(str(path), "names no image", WAY_OUT)
    return keys


def read_candidates(path: Path) -> dict[str, list[tuple[str, int]]]:
    """Image id → the captions to be ranked again, as (image id, number); `minival_caption_indexs_top20.pt`."""
    found = {}
    for image_id, value in load_tensors(path).items():
        where = f"{path} image {image_id!r}"
        pairs = _loads(value, where) if isinstance(value, str) else value
        if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
            raise IntegrityError(where, "has no list of [image id, number of a caption]", WAY_OUT)
        found[str(image_id)] = [(str(key), number) for key, number in pairs]
    return found


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and type(value[1]) is int


def of_split(value: Any, split: str, meant: str) -> str | None:
    """An argument that is given by split, or as one text that is for the split `meant`; "" and None are none."""
    if isinstance(value, Mapping):
        value = value.get(split)
    elif split != meant:
        return None
    return str(value) if value else None
