"""The shape `image_text_shards`: pictures and texts in tar shards; LAION-COCO, LAION-2B-multi and LAION-400M."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from lavis_ext.common.config.cards import BOOKKEEPING
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.common.errors import IntegrityError
from lavis_ext.common.files import expanded
from lavis_ext.common.registry import builders
from lavis_ext.common.types import Batch, Sample
from lavis_ext.datasets.buckets import ShardBucket, is_remote
from lavis_ext.datasets.builders.context import BuildContext, args_of, not_prepared
from lavis_ext.datasets.builders.settings import ShardKeys
from lavis_ext.datasets.collate import collate
from lavis_ext.datasets.datasets.base_dataset import MAX_TEXT, draw_below, instruction
from lavis_ext.datasets.readers.faults import FaultLog, SampleError
from lavis_ext.datasets.readers.shard_index import fixed_folder, list_shards, refuse_scheme
from lavis_ext.datasets.readers.shards import RawSample, ShardReader
from lavis_ext.fetch.cache import ObjectCache
from lavis_ext.processors import build_processor, drawing_from, uint8_of

log = logging.getLogger(__name__)
SPLIT = "train"


@builders.register("image_text_shards", config=ShardKeys)
def image_text_shards(config: DatasetConfig, context: BuildContext) -> dict[str, ImageTextStream]:
    """The split `train` as a stream of the shards that `build_info.storage` names; there is no other."""
    if context.splits is not None and SPLIT not in context.splits:
        return {}
    args = args_of(config)
    storage = config.build_info.storage
    where = f"datasets.{config.name}.build_info.storage"
    bucket = None
    if any(map(is_remote, storage)):
        folder = expanded(args["cache_dir"]) if args["cache_dir"] else Path(context.cache_root, BOOKKEEPING, "shards")
        cache = ObjectCache(folder, int(args["cache_gb"] * 10**9), args["shards_ahead"])
        bucket = ShardBucket.find(storage, cache, where)
        paths = bucket.paths
    else:
        for pattern in storage:
            refuse_scheme(pattern, where)
            folder = fixed_folder(pattern, context.cache_root)
            if not folder.is_dir():
                raise not_prepared(config, folder, "no such folder of shards")
        paths = list_shards(storage, context.cache_root, where)
    needs = ("image", "txt") if args["caption_key"] == ".txt" else ("image", "json")
    limit = config.max_samples.get(SPLIT)
    buffer = args["shuffle_buffer"]
    reader = ShardReader(paths, needs, args["seed"], buffer, limit, context.check_shards, bucket=bucket)
    vis, text = (build_processor(pair.of(SPLIT)) for pair in (config.vis_processor, config.text_processor))
    return {SPLIT: ImageTextStream(config, reader, vis, text, args)}


@dataclass(eq=False)
class ImageTextStream(IterableDataset[Sample]):
    """Pictures and captions of shards: a Stream for the mixture, and an IterableDataset for a plain DataLoader.

    The mixture draws raw samples by `iterate`, which its workers turn into samples by `load`; a DataLoader iterates
    over finished samples in LAVIS' form, each of its workers over its own part. Samples have `image`, `text_input` [and
    `text_output`], and `instance_id`: `00003.tar!000030017`.
    """

    config: DatasetConfig
    reader: ShardReader
    vis_processor: Any
    text_processor: Any
    args: Mapping[str, Any]
    faults: FaultLog = field(default_factory=FaultLog)
    """Faults of a plain iteration; the mixture keeps its own log."""

    def __post_init__(self) -> None:
        self.faults.tolerances.setdefault(self.config.name, self.config.tolerance)
        self._state: dict[str, Any] = {"lap": 0, "done": 0}  # keys of existing checkpoints
        self._warned = False

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.config.name

    @property
    def split(self) -> str:
        """The split."""
        return SPLIT

    @property
    def tolerance(self) -> float:
        """Share of samples that may fail."""
        return self.config.tolerance

    @property
    def epoch_size(self) -> int:
        """Samples in an epoch, over all ranks; faulty ones count."""
        declared: int | None = self.args["epoch_size"]
        return len(self.reader) if declared is None else declared

    @property
    def exact(self) -> bool:
        """Whether an epoch is one pass, whatever the number of ranks."""
        return bool(self.args["exact"])

    def iterate(
        self, rank: int, world: int, state: Mapping[str, Any] | None = None
    ) -> Iterator[RawSample | SampleError]:
        """The rest of one pass of a rank, from a state of `state_dict()` on; parts of ranks are disjoint."""
        pass_index, done = (int(state["lap"]), int(state["done"])) if state else (0, 0)
        fixed: dict[str, Any] = {}
        if self.reader.bucket is not None:
            fixed["objects"] = self.reader.bucket.identity
            if state and state.get("objects", fixed["objects"]) != fixed["objects"]:
                what = "its shards are not those of the checkpoint: objects were replaced, added or removed"
                raise IntegrityError(f"datasets.{self.name}", what, "start a new run: their order would be another")
        self._state = {"lap": pass_index, "done": done, **fixed}
        for item in self.reader.iterate(rank, world, pass_index, done):
            done += 1
            self._state = {"lap": pass_index, "done": done, **fixed}
            yield item
        self._state = {"lap": pass_index + 1, "done": 0, **fixed}

    def state_dict(self) -> dict[str, Any]:
        """Where the last item of `iterate` was: pass, and number in this rank's part of it."""
        return dict(self._state)

    def load(self, item: RawSample, rng: torch.Generator) -> Sample:
        """A raw sample with `image` uint8 [3,H,W] and all randomness from `rng`. Raises SampleError."""
        return self._finish(item, rng)

    def __iter__(self) -> Iterator[Sample]:
        """One pass of finished samples; see `passes`."""
        return self.passes(0, 1)

    def passes(self, first: int = 0, count: int | None = None) -> Iterator[Sample]:
        """Finished samples (`image` float32 [3,H,W], or PIL without vis_processor), `count` passes or without end.

        Each process of a group, and each worker of a DataLoader, gets its own part. Samples that fail are left out and
        counted in `faults`; raises PartialError at the end of a pass that lost too many. A part without samples (more
        workers than samples) ends at once.
        """
        rank, world = split_of_process()
        if len(self.reader) * (rank + 1) // world == len(self.reader) * rank // world:
            return
        for pass_index in range(first, first + count) if count is not None else itertools.count(first):
            for item in self.reader.iterate(rank, world, pass_index):
                sample = self._try(item)
                if sample is not None:
                    yield sample
            self.faults.check(final=True)

    def as_pipeline(self, *stages: Any) -> Any:
        """A `webdataset.DataPipeline` of finished samples, pass after pass without end, and of further stages."""
        from webdataset import DataPipeline  # type: ignore[import-untyped]

        return DataPipeline(self.passes, *stages)

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """Samples → batch."""
        return collate(samples)

    def _try(self, item: RawSample | SampleError) -> Sample | None:
        """A finished sample, or None where it failed and was counted."""
        self.faults.seen(self.name, SPLIT, 1)
        try:
            if isinstance(item, SampleError):
                raise item
            return self._finish(item, None)
        except SampleError as error:
            self.faults.record(self.name, SPLIT, error)
            log.warning("left out: %s", error)
            self.faults.check()
            return None

    def _finish(self, item: RawSample, rng: torch.Generator | None) -> Sample:
        item.check()
        image = self._image(item.pixels(), rng)
        with drawing_from(rng):
            if self.args["sample_key"]:
                return {"image": image, "instance_id": item.name, **self._packed(item)}
            texts: Sample = self._texts(self._caption(item, rng), rng)
        return {"image": image, **texts, "instance_id": item.name}

    def _texts(self, caption: str, rng: torch.Generator | None) -> Sample:
        if self.args["instruct"]:
            return {"text_input": instruction(self.text_processor), "text_output": caption}
        if self.args["prefix_split"]:
            return split_prefix(caption, rng)
        return {"text_input": caption}

    def _packed(self, item: RawSample) -> Sample:
        """What a packed sample has beside its picture; raises SampleError where that is no object."""
        found: Any = item.record().get(self.args["sample_key"])
        if not isinstance(found, dict) or "image" in found:
            raise item.fault(f"json has no object {self.args['sample_key']}")
        text = found.get("text_input")
        if text == "" and "text_output" in found:  # an instruction, which the text processor makes
            learnt = self._clean(item, found["text_output"])
            found = {**found, "text_input": instruction(self.text_processor), "text_output": learnt}
        elif text is not None:
            found = {**found, "text_input": self._clean(item, text)}
        packed: Sample = found
        return packed

    def _image(self, pixels: Any, rng: torch.Generator | None) -> Any:
        """uint8 with randomness from `rng`, else LAVIS' form; a processor without `uint8` is called as it is."""
        processor, uint8 = self.vis_processor, uint8_of(self.vis_processor)
        if uint8 is not None:
            return processor(pixels) if rng is None else uint8(pixels, rng)
        from PIL import Image

        image = Image.fromarray(pixels)
        return image if processor is None else processor(image)

    def _caption(self, item: RawSample, rng: torch.Generator | None) -> str:
        """The processed caption; raises SampleError where there is none."""
        try:
            caption = self._choose(item, rng)
        except KeyError as error:
            raise item.fault(f"json has no {error.args[0]}") from error
        except ValueError as error:
            raise item.fault(str(error)) from error
        return self._clean(item, caption)

    def _clean(self, item: RawSample, caption: Any) -> str:
        """A text through the text processor; raises SampleError for what is none."""
        if not isinstance(caption, str) or not caption.strip() or len(caption) > MAX_TEXT:
            raise item.fault("caption is empty, too long or no text")
        clean = caption.replace("\0", "").encode("utf-8", "ignore").decode("utf-8")
        return clean if self.text_processor is None else str(self.text_processor(clean))

    def _choose(self, item: RawSample, rng: torch.Generator | None) -> Any:
        """The caption in the shard; raises KeyError for a missing column, ValueError for a bad pair of lists.

        Records without `captions_key`, as img2dataset writes them of a list with one caption, have `caption_key`.
        """
        key = self.args["caption_key"]
        if key == ".txt":
            return item.text()
        record = item.record()
        several = self.args["captions_key"]
        if several in record:
            return best_caption(record[several], record[self.args["scores_key"]])
        if several is not None and not self._warned:
            self._warned = True
            log.warning("%s: %s has no '%s': '%s' is taken where that is so", self.name, item.name, several, key)
        caption = record[key]
        if isinstance(caption, list) and caption:
            return caption[draw_below(min(2, len(caption)), rng)]
        return caption


def best_caption(captions: Any, scores: Any) -> Any:
    """The caption of the highest score, the first of equal ones (numpy.argmax); raises ValueError for a bad pair."""
    if not isinstance(captions, list) or not isinstance(scores, list) or not captions or len(captions) != len(scores):
        raise ValueError("captions and scores are not two lists of one length")
    if not all(type(score) in (int, float) and math.isfinite(score) for score in scores):
        raise ValueError("a score is no number")
    return captions[scores.index(max(scores))]


def split_prefix(caption: str, rng: torch.Generator | None) -> Sample:
    """A caption cut before a word of its first half: `text_input` (may be empty) and `text_output` (VPGTrans)."""
    words = caption.split(" ")
    point = draw_below(len(words) // 2 + 1, rng)
    return {"text_input": " ".join(words[:point]), "text_output": " ".join(words[point:])}


def split_of_process() -> tuple[int, int]:
    """Which part of how many this process reads: its rank in the process group times the workers of its DataLoader."""
    rank, world = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    worker = get_worker_info()
    return (rank, world) if worker is None else (rank * worker.num_workers + worker.id, world * worker.num_workers)
