"""The shape `region_caption`: captions to complete from tags and regions, one word after the other; COCO and NoCaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_ext.builders.context import BuildContext
from lavis_ext.builders.region.base import RegionDataset
from lavis_ext.builders.region.batch import listed, mask_rows, pad_rows, region_rows
from lavis_ext.builders.region.lengths import input_lengths, tag_counts
from lavis_ext.builders.region.masking import choose_positions, hide
from lavis_ext.builders.region.naming import Naming, find_naming
from lavis_ext.builders.region.opening import Opening, RegionParts, region_splits
from lavis_ext.builders.region.regions import Place
from lavis_ext.builders.region.settings import RegionCaptionKeys
from lavis_ext.builders.region.tables import ImageRows, TagTable, tag_table
from lavis_ext.builders.region.text import Ids, tag_text
from lavis_ext.errors import ConfigError, IntegrityError
from lavis_ext.features.ids import key_of
from lavis_ext.features.row import ReadOptions
from lavis_ext.readers.annotations import Annotations
from lavis_ext.readers.parse import Row, parse_json, parse_rows, read_text
from lavis_ext.registry import builders
from lavis_ext.schema import DatasetConfig
from lavis_ext.types import Batch, Dataset, Sample
from lavis_ext.yamlio import read_yaml


@builders.register("region_caption", config=RegionCaptionKeys)
def region_caption(config: DatasetConfig, context: BuildContext) -> dict[str, Dataset]:
    """Oscar's `{split}.yaml`, which names `feature`, `label`, `hw` and `caption` files in its folder.

    `train` gives one caption a sample, every other split one image.
    `args.features` stands for what `feature` names.
    """
    return region_splits(config, context, _make)


@dataclass(frozen=True)
class Sides:
    """The files that a split's YAML names, None where it names none or where it is not there."""

    home: Path
    feature: Path
    label: Path | None
    hw: Path | None
    caption: Path | None
    naming: Naming | None = None


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


def read_sides(home: Path) -> Sides:
    """The files of a split's YAML, below its folder; raises ConfigError where it names no features."""
    tree, _ = read_yaml(home)
    named = {key: home.parent / str(tree[key]) for key in ("feature", "label", "hw", "caption") if tree.get(key)}
    if "feature" not in named:
        raise ConfigError(str(home), "names no `feature` file", "name another YAML")
    there = {key: path for key, path in named.items() if path.is_file()}
    label, hw, caption = (there.get(key) for key in ("label", "hw", "caption"))
    return Sides(home, named["feature"], label, hw, caption, find_naming(home, tree))


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
    naming: Naming | None = None

    def image_id(self, row: Row) -> int | str:
        """The id of result files: a number where it is one."""
        text = str(row["image_id"])
        return int(text) if text.isascii() and text.isdigit() else text

    def od_ids(self, row: Row, place: Place) -> Ids:
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
        """What a caption of the image may be held to name: things, each as the words for it (see `Naming`)."""
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
    """A caption with some of its words hidden, beside the tags and regions of its image."""

    def measured(self) -> np.ndarray:
        """Regions, tags where they are in a file of their own, and tokens of the caption."""
        regions, words = input_lengths(self, self.rows.words("caption")).T
        if self.tags is None or not self.parts.args["add_od_labels"]:
            return np.stack([regions, words], 1)
        tags = np.minimum(tag_counts(self, self.tags), self.parts.args["max_seq_length"])
        return np.stack([regions, tags, words], 1).astype(np.int32)

    def fields(self, row: Row, index: int, rng: torch.Generator | None) -> Sample:
        """`input_ids` of the caption, hidden words in it, `masked_pos` (where they were) and `masked_ids` (the words).

        Of n tokens with [CLS] and [SEP], max(1, round(mask_prob · n)) and at most `max_masked_tokens` are hidden; the
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
        `attention_mask` uint8 [B,S,S], `masked_pos` bool [B,T] and `masked_ids` int64 of all hidden words in order.

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
