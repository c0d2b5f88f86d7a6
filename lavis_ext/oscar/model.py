"""The registered `oscar`: its network under the project's interface for models, tasks and distillation."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_ext.common.errors import ConfigError, IntegrityError
from lavis_ext.common.files import expanded
from lavis_ext.common.registry import models
from lavis_ext.common.types import Batch
from lavis_ext.models.base_model import BaseModel, Outputs
from lavis_ext.models.losses import IGNORED
from lavis_ext.models.network import recompute, size_errors
from lavis_ext.models.weights import read_checkpoint
from lavis_ext.oscar.caption_writer import CaptionWriter, Texts
from lavis_ext.oscar.config import OscarConfig
from lavis_ext.oscar.convert import CONFIG, KeyReport, classes_of, find_folder, load_into, meet, read_folder
from lavis_ext.oscar.generation import Choice
from lavis_ext.oscar.network import VIEWS, Encoded, OscarNetwork, caption_loss, class_loss, hide, narrowed, visible
from lavis_ext.oscar.settings import wanted
from lavis_ext.oscar.wordpiece import WordPiece, find_vocab, load_wordpiece

log = logging.getLogger(__name__)
INPUTS = ("input_ids", "token_type_ids", "attention_mask", "img_feats", "position_ids")


@models.register("oscar", config=OscarConfig)
class Oscar(BaseModel):
    """Oscar (Li et al., arXiv:2004.06165) and VinVL (Zhang et al., arXiv:2101.00529) with one of four heads.

    `report`: weights of `pretrained` that are not used, and weights that are newly initialised. Word heads have a
    `tokenizer`.
    """

    views = VIEWS
    batches: Tensor
    """How many batches a captioner was trained on."""

    def __init__(self, config: OscarConfig, network: OscarNetwork, tokenizer: WordPiece | None = None) -> None:
        super().__init__()
        self.config, self.network, self.tokenizer = config, network, tokenizer
        self.head = network.settings.head
        self.report = KeyReport()
        self.looked: set[str] = set()
        if self.head == "caption":
            self.register_buffer("batches", torch.zeros((), dtype=torch.long))
            self.freeze(network.bert.pooler)  # no caption depends on it
        if config.freeze_embedding:
            self.freeze(network.bert.embeddings.word_embeddings.weight)
        if config.use_grad_checkpoint:
            recompute(network.bert)

    @classmethod
    def from_config(cls, config: OscarConfig) -> Oscar:
        """From `pretrained` (a folder of upstream's), or from scratch by `sizes` and `tokenizer`; `finetuned` over it.

        Raises ConfigError, IntegrityError or UnsafeError.
        """
        config.require_sound()
        if config.load_finetuned and config.finetuned and config.num_labels is None:
            config = replace(config, num_labels=classes_of(config.finetuned, "model.finetuned"))
        model = _from_pretrained(config) if config.load_pretrained and config.pretrained else _from_scratch(config)
        if config.load_finetuned and config.finetuned:
            model.load_finetuned(config.finetuned, "model.finetuned")
        return model

    def load_finetuned(self, name: str, key: str) -> None:
        """Load a checkpoint of ours, or one of upstream's with the same head; all of it must fit."""
        place = expanded(name)
        folder = place.parent if place.is_file() else place
        if not place.exists() or (folder / CONFIG).is_file():
            origin = read_folder(find_folder(name, key), key)
            report = load_into(self.network, origin, list(range(self.network.settings.layers)), strict=True)
            if report.unused:
                way_out = "set model.num_hidden_layers as it was fine-tuned with"
                raise IntegrityError(origin.where, str(report), way_out)
            return
        self.load_trainable_state(read_checkpoint(name, key))

    def encoder_layers(self) -> nn.ModuleList:
        """The layers of the encoder, the lowest first."""
        return self.network.layers

    def outputs(self, batch: Batch, view: str = "full", hidden: bool = False, attentions: bool = False) -> Outputs:
        """One forward pass; `view` "text" hides the regions from all tokens, "image" the whole text with [CLS].

        Word heads yield the logits of the tokens to predict (`masked_pos`, or `lm_labels` ≥ 0), row by row. Raises
        ConfigError for an unknown view and for features of another width.
        """
        return self._outputs(batch, (view,), (view,) * hidden, (view,) * attentions)[view]

    def outputs_by_view(
        self, batch: Batch, views: Iterable[str], hidden: Collection[str] = (), attentions: Collection[str] = ()
    ) -> dict[str, Outputs]:
        """The same with words and regions embedded once, unless a subclass has `outputs` of its own."""
        own = type(self).outputs is not Oscar.outputs
        return (super().outputs_by_view if own else self._outputs)(batch, views, hidden, attentions)

    def _outputs(
        self, batch: Batch, views: Iterable[str], hidden: Collection[str], attentions: Collection[str]
    ) -> dict[str, Outputs]:
        given: dict[str, Any] = self._inputs(batch)
        if self.head == "pair":
            given = {name: None if value is None else value.flatten(0, 1) for name, value in given.items()}
        embedded = [given[name] for name in ("input_ids", "token_type_ids", "img_feats", "position_ids")]
        words, regions = self.network.embed_parts(*embedded)
        whole, found = (words, regions, given["attention_mask"]), {}
        for view in views:
            asked = view in hidden, view in attentions
            first = self.head in ("sequence", "pair") and not any(asked)  # only [CLS] is read
            own, shown, seen = narrowed(*whole, view) if first else whole
            mask = hide(seen, own.shape[1], view)
            encoded = self.network.encode(self.network.join(own, shown), mask, *asked, first)
            found[view] = self._predicted(batch, encoded, mask)
        return found

    def generate(
        self,
        samples: Batch,
        num_beams: int = 5,
        max_length: int = 20,
        length_penalty: float = 1.0,
        repetition_penalty: float = 1.0,
        num_keep_best: int = 1,
        use_cbs: bool = False,
        min_constraints_to_satisfy: int = 2,
    ) -> Texts:
        """For each image its `num_keep_best` captions with their confidence; `samples` of a caption set's eval split.

        `max_length` counts [CLS] and [SEP], as upstream's `max_gen_length`. One beam is greedy. With `use_cbs` a
        caption names at least `min_constraints_to_satisfy` of the image's `constraints`. Raises ConfigError.
        """
        if num_keep_best > 1 and (use_cbs or num_beams == 1):
            raise ConfigError("num_keep_best", "only a plain beam search finds more than one", "set it to 1")
        choice = Choice(max_length, length_penalty, repetition_penalty)
        if use_cbs:
            return self.writer().write_constrained(samples, choice, num_beams, min_constraints_to_satisfy)
        return self.writer().write(samples, choice, num_beams, num_keep_best)

    def writer(self) -> CaptionWriter:
        """What writes captions with these weights; raises ConfigError where the head has no words, or no vocabulary."""
        if self.head != "caption" or self.tokenizer is None:
            what = f"head is '{self.head}'" if self.head != "caption" else "has no vocabulary"
            raise ConfigError("model.head", f"{what}: it writes no captions", "set model.head: caption")
        return CaptionWriter(self.network, self.tokenizer, self.config.max_seq_a_length)

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """`loss` against `targets` or `labels`, `masked_ids` (captions), or `lm_labels` and `labels` (pre-training).

        Pre-training adds `loss_mlm` and `loss_match`; captioning counts its training batches. Raises ConfigError for
        targets that do not fit the classes.
        """
        if self.head == "caption":
            return {"loss": self._caption_loss(outputs.logits, batch)}
        if self.head == "pretrain":
            return self._pretrain_losses(outputs, batch)
        targets = self._targets(batch, outputs.logits.shape[1])
        return {"loss": class_loss(self.config.loss_type, outputs.logits, targets)}

    def _targets(self, batch: Batch, classes: int) -> Tensor:
        """Scores by class [B, C] where the loss takes them and the batch has them, else classes [B]."""
        soft = batch.get("targets") if self.config.loss_type in ("bce", "kl") else None
        found = batch.get("labels") if soft is None else soft
        if found is None:
            what = f"loss_type {self.config.loss_type} finds no targets in the batch ({', '.join(sorted(batch))})"
            raise ConfigError("model.loss_type", what, "bce and kl take scores by class, ce takes one class")
        if soft is None:
            return self._within(found, classes, "model.num_labels")
        if soft.shape[1] != classes:
            raise misfit("model.num_labels", classes, str(soft.shape[1]))
        placed: Tensor = soft.to(self.device)
        return placed

    def _within(self, labels: Tensor, classes: int, key: str) -> Tensor:
        """Labels [B] on the device; raises ConfigError for one beyond the classes."""
        if (found := self._highest(key, labels)) >= classes:
            raise misfit(key, classes, f"{found + 1} or more")
        return labels.to(self.device)

    def _highest(self, name: str, numbers: Tensor) -> int:
        """The highest of some ids; on a GPU only in the first batch, else -1: asking every time would synchronise."""
        if numbers.device.type != "cpu" and name in self.looked:
            return -1
        self.looked.add(name)
        return int(numbers.max()) if numbers.numel() else -1

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        found = {name: batch[name].to(self.device) if name in batch else None for name in INPUTS}
        if found["attention_mask"] is None:
            raise ConfigError("batch", "has no attention_mask", "use a data set of regions (region_*)")
        words, known = self._highest("input_ids", batch["input_ids"]), self.network.settings.sizes["vocab_size"]
        if words >= known:
            what = f"the data set has the token {words}, the model {known} words"
            raise ConfigError("args.vocab", what, "name the vocabulary of the model, the vocab.txt beside its weights")
        return found  # type: ignore[return-value]

    def _predicted(self, batch: Batch, encoded: Encoded, mask: Tensor) -> Outputs:
        network, sequence = self.network, encoded.sequence
        extra = {}
        if self.head in ("sequence", "pair"):
            logits = network.classify(network.pool(sequence))
            valid = mask.bool().any(-1).reshape(len(logits), -1).all(-1)
        else:
            chosen = self._to_predict(batch)
            logits = network.predict(sequence[:, : chosen.shape[1]][chosen])
            valid = visible(mask)[:, : chosen.shape[1]][chosen]
            if self.head == "pretrain":
                extra["matching"] = network.match(network.pool(sequence))
        seen = mask.bool() if mask.dim() == 2 else mask.bool().any(1)
        return Outputs(logits, encoded.hidden_states, encoded.attentions, seen, valid, extra)

    def _to_predict(self, batch: Batch) -> Tensor:
        """bool [B, T]: the tokens whose logits count."""
        if self.head == "pretrain":
            found: Tensor = batch["lm_labels"] != IGNORED
        else:
            found = batch["masked_pos"].bool()
        return found.to(self.device)

    def _caption_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        if self.training:
            self.batches += 1
        config = self.config
        drop = config.drop_worst_ratio if int(self.batches) > config.drop_worst_after else 0.0
        return caption_loss(logits, batch["masked_ids"].to(self.device), config.label_smoothing, drop)

    def _pretrain_losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        words = batch["lm_labels"].to(self.device)
        words = words[words != IGNORED]
        mlm = F.cross_entropy(outputs.logits.float(), words, reduction="sum") / max(1, len(words))
        logits = outputs.extra["matching"].float()
        match = F.cross_entropy(logits, self._within(batch["labels"], logits.shape[1], "model.num_contrast_classes"))
        return {"loss": mlm + match, "loss_mlm": mlm, "loss_match": match}


def misfit(key: str, classes: int, given: str) -> ConfigError:
    """The error for targets of other classes than the model's."""
    what = f"the model has {classes} classes, the data set {given}"
    return ConfigError(key, what, "set it as the data set has it, or name the data set that the model was trained on")


def _from_pretrained(config: OscarConfig) -> Oscar:
    folder = find_folder(str(config.pretrained), "model.pretrained")
    origin = read_folder(folder, "model.pretrained")
    settings = meet(wanted(config, origin.settings), origin, config.num_labels, config.img_feature_dim)
    network = OscarNetwork(settings)
    report = load_into(network, origin, config.layers or list(range(settings.layers)))
    model = Oscar(config, network, _tokenizer(config, settings.has_words, origin.vocab or folder))
    model.report = report
    if str(report):
        log.info("model.pretrained %s: %s", folder, report)
    return model


def _from_scratch(config: OscarConfig) -> Oscar:
    if not config.sizes:
        way_out = "name the folder of an Oscar checkpoint, or give model.sizes and model.tokenizer"
        raise ConfigError("model.pretrained", "no weights to start from", way_out)
    tokenizer = _tokenizer(config, True, None)
    settings = wanted(replace(config, pretrained=None), None, len(tokenizer) if tokenizer else None)
    with size_errors():
        return Oscar(config, OscarNetwork(settings), tokenizer)


def _tokenizer(config: OscarConfig, needed: bool, beside: Path | None) -> WordPiece | None:
    """`model.tokenizer`, else the vocabulary beside the weights; None where there is none and none is needed."""
    name = config.tokenizer or (str(beside) if beside else None)
    if name is None or not (needed or config.tokenizer or (beside and beside.is_file())):
        return None
    return load_wordpiece(find_vocab(name, key="model.tokenizer"), key="model.tokenizer")
