"""oscar_caption: captions from tags and regions, trained on masked words or by self-critical CIDEr-D.

Beside COCO's result file it writes upstream's: a TSV with each image's captions and their confidence.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.files import disk_errors, write_atomic
from lavis_ext.common.registry import tasks
from lavis_ext.common.types import Batch
from lavis_ext.metrics.ptb import clean_tokens
from lavis_ext.oscar.caption_writer import CaptionWriter, caption_mask
from lavis_ext.oscar.config import OscarCaptionConfig
from lavis_ext.oscar.generation import Choice, log_probabilities, score_captions
from lavis_ext.tasks.base_task import BaseTask, Row, first_by_id, merged_references, plain_id, write_result
from lavis_ext.tasks.captioning import Captioning

log = logging.getLogger(__name__)

LONGEST = 4
SIGMA = 6.0
SCALE = 10.0
END = "<eos>"
KEPT = 4096
"""Images whose reference vectors are cached."""
Gram = tuple[str, ...]


@dataclass(frozen=True)
class Vector:
    """The tf-idf weights of a caption's n-grams, and their norm, by n from 1; and how many words follow a word."""

    weights: tuple[dict[Gram, float], ...]
    norms: tuple[float, ...]
    length: int


class CiderD:
    """CIDEr-D (Vedantam et al., arXiv:1411.5726 §6) of single captions, on a scale of 0 to 10.

    `documents` are the references of the training images, from which document frequencies are counted once. A reward is
    asked for many captions of few images, so the n-grams of an image's references are cached. Texts are tokenised as in
    COCO's evaluation, with `<eos>` behind the last word, as upstream's rewards are. Raises ConfigError for less than
    two images, as no n-gram is rarer than another then.
    """

    def __init__(self, documents: Mapping[Any, Sequence[str]]) -> None:
        if len(documents) < 2:
            what = f"{len(documents)} images have captions"
            raise ConfigError("CIDEr-D", what, "take a training split of at least two images with captions")
        self.documents = documents
        self.rarity = math.log(len(documents))
        self.frequency: Counter[Gram] = Counter()
        for texts in documents.values():
            self.frequency.update({gram for text in texts for gram in grams(text)})
        self._references = lru_cache(KEPT)(self._vectors)

    def score(self, image: Hashable, caption: str) -> float:
        """CIDEr-D of a caption of one of the images; raises ConfigError for an image without references."""
        references = self._references(image)
        own = self.vector(caption)
        return SCALE * sum(similarity(own, other) for other in references) / len(references)

    def vector(self, text: str) -> Vector:
        """The weights of a text: how often an n-gram is in it, times how rare it is."""
        found: tuple[dict[Gram, float], ...] = tuple({} for _ in range(LONGEST))
        for gram, count in grams(text).items():
            rare = self.rarity - math.log(max(1, self.frequency[gram]))
            found[len(gram) - 1][gram] = count * rare
        norms = tuple(math.sqrt(sum(weight * weight for weight in part.values())) for part in found)
        return Vector(found, norms, max(len(words(text)) - 1, 0))

    def _vectors(self, image: Hashable) -> list[Vector]:
        texts = self.documents.get(image)
        if not texts:
            raise ConfigError("CIDEr-D", f"image {image} has no captions to compare with", "train on a captioned split")
        return [self.vector(text) for text in texts]


def similarity(own: Vector, other: Vector) -> float:
    """The mean over n of clipped cosines, less the more the lengths differ."""
    total = 0.0
    for mine, theirs, norm, their_norm in zip(own.weights, other.weights, own.norms, other.norms, strict=True):
        product = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs)
        total += product / (norm * their_norm) if norm and their_norm else 0.0
    gap = own.length - other.length
    return total / LONGEST * math.exp(-(gap * gap) / (2 * SIGMA * SIGMA))


def grams(text: str) -> Counter[Gram]:
    """How often each n-gram of 1 to 4 words is in a text."""
    own = words(text)
    sizes = range(1, LONGEST + 1)
    return Counter(tuple(own[start : start + size]) for size in sizes for start in range(len(own) - size + 1))


def words(text: str) -> list[str]:
    """The words of a text and the sign of its end."""
    return [*clean_tokens(text).split(), END]


@tasks.register("oscar_caption", config=OscarCaptionConfig)
class OscarCaption(Captioning):
    """Oscar as a captioner: the model's own loss in training, beam search in evaluation, COCO's metrics."""

    needs: tuple[str, ...] = ("generate", "writer")

    @classmethod
    def from_config(cls, run: OscarCaptionConfig, model: nn.Module) -> BaseTask:
        """The task, or with `run.scst` the one that learns from rewards."""
        return (SelfCritical if run.scst else OscarCaption)(model, run)

    def before_train(self, batches: Any, total: int) -> None:
        """Check that the data sets have the model's vocabulary and its position of tags; raises ConfigError."""
        self._require_match(list(batches.datasets.values()))

    def before_evaluation(self, split: str, datasets: Sequence[Any]) -> None:
        """The same check for the data sets of a split."""
        self._require_match(datasets)

    def valid_step(self, batch: Batch) -> list[Row]:
        """Tags and regions → one {caption, image_id, best} an image; `best` is upstream's [{caption, conf}]."""
        run = self.run
        found = self.network.generate(
            batch,
            num_beams=run.num_beams,
            max_length=run.max_len,
            length_penalty=self.length_penalty,
            repetition_penalty=run.repetition_penalty,
            num_keep_best=run.num_keep_best,
            use_cbs=run.use_cbs,
            min_constraints_to_satisfy=run.min_constraints_to_satisfy,
        )
        ranked = [[{"caption": text, "conf": conf} for text, conf in captions] for captions in found]
        names = [plain_id(name) for name in batch["image_id"]]
        return [
            {"caption": best[0]["caption"], "image_id": name, "best": best}
            for name, best in zip(names, ranked, strict=True)
        ]

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """What captioning writes, and upstream's `pred.*.tsv` with its `.eval.json` where something is scored."""
        plain = [{key: row[key] for key in ("caption", "image_id")} for row in rows]
        metrics = super().after_evaluation(plain, split, datasets, out_dir, epoch)
        path = out_dir / f"{self.prediction_name(split, datasets, epoch)}.tsv"
        lines = [f"{row['image_id']}\t{json.dumps(row['best'])}\n" for row in first_by_id(rows, "image_id")]
        with disk_errors(path, "set run.output_dir elsewhere"):
            write_atomic(path, "".join(lines))
        if metrics:
            scores = {name: value for name, value in metrics.items() if name != "agg_metrics"}
            write_result(path.with_suffix(".eval.json"), scores)
        return metrics

    def prediction_name(self, split: str, datasets: Sequence[Any], epoch: int | str) -> str:
        """Upstream's name of a prediction: data, split and the search that made it."""
        run = self.run
        data = "+".join(sorted({str(getattr(dataset, "name", "data")) for dataset in datasets}))
        parts = ["pred", data, f"{split}_epoch{epoch}", f"beam{run.num_beams}", f"max{run.max_len}"]
        if all(option(dataset, "add_od_labels", True) for dataset in datasets):
            parts.append("odlabels")
        parts += [f"best{run.num_keep_best}"] if run.num_keep_best > 1 else []
        parts += [f"cbs{run.min_constraints_to_satisfy}"] if run.use_cbs else []
        return ".".join(parts)

    def _require_match(self, datasets: Sequence[Any]) -> None:
        own = self.network.config.max_seq_a_length
        for dataset in datasets:
            given = option(dataset, "max_seq_a_length", own)
            if given != own:
                what = f"the tags of '{dataset.name}' begin at {given}, the model's at {own}"
                raise ConfigError("max_seq_a_length", what, "set model.max_seq_a_length as the data set's args have it")
            words = getattr(getattr(getattr(dataset, "parts", None), "encoder", None), "words", None)
            if words is not None and words.digest != self.network.writer().words.digest:
                what = f"'{dataset.name}' spells words by {words.path}, the model by another vocabulary"
                raise ConfigError("args.vocab", what, "name the vocab.txt of the model for both")


class SelfCritical(OscarCaption):
    """Self-critical training (Rennie et al., arXiv:1612.00563): the reward is CIDEr-D less that of a baseline.

    Captions are sampled without dropout, with torch's generator; the gradient is of their mean log probability, all
    words of a caption in one pass.
    """

    scorer: CiderD | None = None

    def before_train(self, batches: Any, total: int) -> None:
        """Count the document frequencies of the training captions; raises ConfigError where there are none."""
        super().before_train(batches, total)
        references = merged_references(list(batches.datasets.values()))
        self.scorer = CiderD(references)
        log.info("CIDEr-D: %d n-grams of %d training images", len(self.scorer.frequency), len(references))

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, and the mean CIDEr-D of the sampled captions (`reward`) and of the `baseline`."""
        writer: CaptionWriter = self.network.writer()
        choice, count = Choice(self.run.max_len, temperature=self.run.temperature), self.run.sc_train_sample_n
        training = self.network.training
        self.network.eval()
        drawn = writer.sample(batch, choice, count).ids.flatten(0, 1)
        greedy = writer.write(batch, choice, num_beams=1) if self.run.sc_baseline_type == "greedy" else None
        self.network.train(training)
        names = [plain_id(name) for name in batch["image_id"]]
        rewards = self.rewards(
            [name for name in names for _ in range(count)], [writer.text(ids) for ids in drawn.tolist()]
        )
        rewards = rewards.view(len(names), count)
        if greedy is None:
            baseline = (rewards.sum(1, keepdim=True) - rewards) / (count - 1)
        else:
            baseline = self.rewards(names, [captions[0][0] for captions in greedy])[:, None]
        gain = (rewards - baseline).flatten().to(drawn.device)
        loss = -(self.mean_log_probability(writer, batch, drawn, count) * gain).mean()
        return {"loss": loss, "reward": rewards.mean().to(loss), "baseline": baseline.mean().to(loss)}

    def rewards(self, images: Sequence[Hashable], captions: Sequence[str]) -> Tensor:
        """CIDEr-D [N] of captions of the images."""
        if self.scorer is None:
            raise ConfigError("run.scst", "the training captions were not counted", "train it with a runner")
        return torch.tensor([self.scorer.score(name, text) for name, text in zip(images, captions, strict=True)])

    def mean_log_probability(self, writer: CaptionWriter, batch: Batch, captions: Tensor, count: int) -> Tensor:
        """[N] of captions [N, L] with [SEP], `count` of each image, with gradients."""
        context = writer.context(batch, self.run.max_len).repeated(count)
        length = int((captions != writer.ends.pad).sum(1).max())
        captions = captions[:, :length]
        logits = score_captions(writer.network, context, captions, writer.words.mask) / self.run.temperature
        chosen = caption_mask(captions, writer.ends)
        # a caption of full length must end there, so its [SEP] was not sampled
        chosen[:, self.run.max_len - 2 :] = False
        logs = log_probabilities(logits, captions[:, 1:])
        mean: Tensor = (logs * chosen).sum(1) / chosen.sum(1)
        return mean


def option(dataset: Any, name: str, default: Any) -> Any:
    """An argument of a region data set, `default` for other data sets."""
    args = getattr(getattr(dataset, "parts", None), "args", {})
    return args.get(name, default)
