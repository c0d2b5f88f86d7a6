"""The keys of Oscar's and VinVL's `model:` sections, most under the names of upstream's flags."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from lavis_ext.errors import Problem
from lavis_ext.schema import ModelConfig
from lavis_ext.typed import Bound, Count, Natural, Positive

Part = Annotated[float, Bound(0, 0.999)]
"""A share below the whole."""


@dataclass(frozen=True, kw_only=True)
class OscarConfig(ModelConfig):
    """A BERT over words, tags and regions, with one of four heads."""

    head: Literal["sequence", "pair", "caption", "pretrain"] = "sequence"
    """A class of one input or of `num_choice` together, words at masked places, or words and matching."""
    num_labels: Count | None = None
    """None: as many as the vocabulary of answers of the data set has."""
    loss_type: Literal["bce", "kl", "ce", "xe", "sfmx"] = "ce"
    """bce: sigmoid, summed over classes; kl: against soft targets; all others: softmax cross-entropy."""
    classifier: Literal["linear", "mlp"] = "linear"
    cls_hidden_scale: Count = 2
    """Width of the `mlp` classifier's inner layer, in hidden sizes."""
    use_pair: bool = False
    """Upstream's flag for `head: pair`."""
    num_choice: Count = 2
    img_feature_dim: Count = 2054
    """2048 numbers of appearance and 6 of the box."""
    use_img_layernorm: bool = False
    """A LayerNorm over the projected regions (VinVL); told from the weights where there are any."""
    img_layer_norm_eps: Positive = 1e-12
    drop_out: Part = 0.1
    use_grad_checkpoint: bool = False
    num_hidden_layers: Count | None = None
    """Layers of a smaller model, the first of `pretrained`'s; None: all."""
    layers: list[Natural] = field(default_factory=list)
    """Which layers of `pretrained` a smaller model starts from, counted from 0; empty: the first."""
    num_contrast_classes: Annotated[int, Bound(2, 3)] = 2
    """`head: pretrain`: 2 (matches, or not), or 3 (the text or the tags do not)."""
    label_smoothing: Part = 0.0
    drop_worst_ratio: Part = 0.0
    """`head: caption`: share of the tokens with the highest loss that is left out …"""
    drop_worst_after: Natural = 0
    """… after so many training batches."""
    tie_weights: bool = True
    """The last matrix of a word head is that of the word embeddings."""
    freeze_embedding: bool = False
    """Word embeddings are not trained."""
    max_seq_a_length: Count = 40
    """`head: caption`: where the positions of object tags begin, as in training."""

    views: ClassVar[tuple[str, ...]] = ("full", "text", "image")

    @property
    def used_head(self) -> str:
        """The head that is built."""
        return "pair" if self.use_pair else self.head

    def problems(self, where: str = "model") -> Iterator[Problem]:
        """Two heads at once."""
        if self.use_pair and self.head not in ("sequence", "pair"):
            yield Problem(f"{where}.use_pair", f"head is '{self.head}'", "set head: pair, or use_pair: False")
