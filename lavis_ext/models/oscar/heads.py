"""What stands on Oscar's encoder, a classifier of one input or of several together, and the losses of all heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_ext.models.oscar.settings import Settings


class TwoLayers(nn.Module):
    """Linear – ReLU – [LayerNorm] – Linear."""

    def __init__(self, width: int, inner: int, classes: int, norm_eps: float | None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.norm = nn.LayerNorm(inner, eps=norm_eps) if norm_eps is not None else None
        self.fc2 = nn.Linear(inner, classes)

    def forward(self, pooled: Tensor) -> Tensor:
        """[B, W] → [B, C]."""
        inner = F.relu(self.fc1(pooled))
        found: Tensor = self.fc2(inner if self.norm is None else self.norm(inner))
        return found


def build_classifier(settings: Settings) -> nn.Module:
    """`linear` or `mlp` over one pooled vector, or over `num_choice` of them side by side.

    VinVL's pair head has a LayerNorm, as its regions have.
    """
    hidden = settings.hidden_size
    width = hidden * (settings.num_choice if settings.head == "pair" else 1)
    if settings.classifier == "linear":
        return nn.Linear(width, settings.num_labels)
    norm = settings.head == "pair" and settings.use_img_layernorm
    eps = float(settings.sizes["layer_norm_eps"]) if norm else None
    return TwoLayers(width, hidden * settings.cls_hidden_scale, settings.num_labels, eps)


def start_anew(part: nn.Module, std: float) -> None:
    """BERT's first weights: normal with the given deviation, biases 0, norms 1."""
    for module in part.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def class_loss(kind: str, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of `loss_type` `kind` of logits [B, C] against classes [B] (int) or scores by class [B, C].

    bce: sigmoid cross entropy, summed over the classes and averaged over the batch; kl: divergence from the softmax,
    averaged over the batch; anything else: softmax cross entropy.
    """
    soft = targets if targets.is_floating_point() else F.one_hot(targets, logits.shape[1])
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(logits, soft.to(logits.dtype)) * logits.shape[1]
    if kind == "kl":
        return F.kl_div(F.log_softmax(logits, dim=-1), soft.to(logits.dtype), reduction="batchmean")
    return F.cross_entropy(logits, targets)


def caption_loss(logits: Tensor, words: Tensor, smoothing: float = 0.0, drop: float = 0.0) -> Tensor:
    """Divergence of logits [M, V] from the smoothed true words [M], the mean without the share `drop` of the worst.

    The smoothed target has 1 − `smoothing` at the word and the rest spread evenly over the others.
    """
    if not len(words):
        return logits.sum() * 0.0
    logs = F.log_softmax(logits.float(), dim=1)
    share = smoothing / (logits.shape[1] - 1)
    target = torch.full_like(logs, share).scatter_(1, words[:, None], 1 - smoothing)
    losses = F.kl_div(logs, target, reduction="none").sum(1)
    kept = max(1, int(len(losses) * (1 - drop)))
    return losses.topk(kept, largest=False).values.mean() if drop > 0 else losses.mean()
