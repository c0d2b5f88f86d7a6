"""Caption metrics as COCO's evaluation computes them: PTB tokens, punctuation removed, Bleu_1–4, ROUGE_L and CIDEr.

METEOR and SPICE need Java and are computed only on request and where it is installed.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Hashable, Mapping, Sequence
from importlib import import_module
from typing import Any

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import metrics
from lavis_ext.metrics.ptb import clean_tokens
from lavis_ext.metrics.settings import CocoCaptionKeys

log = logging.getLogger(__name__)
Texts = dict[Hashable, list[str]]


def caption_scores(
    references: Mapping[Any, Sequence[str]], predictions: Mapping[Any, str], extra: Collection[str] = ()
) -> dict[str, float]:
    """Corpus scores of one caption an image against its references; `extra` may name METEOR and SPICE.

    Images without a prediction are left out: CIDEr's document frequencies are those of the scored images.
    CIDEr of a single image is 0 by definition (every n-gram is in every document, log 1 = 0).
    An empty prediction scores 0. Raises ConfigError if a prediction has no reference.
    """
    check_ids(references, predictions)
    gts = {key: [clean_tokens(text) for text in references[key]] for key in predictions}
    res = {key: [clean_tokens(predictions[key])] for key in predictions}
    bleu, _ = Bleu(4).compute_score(gts, res, verbose=0)
    scores = {f"Bleu_{n}": float(value) for n, value in enumerate(bleu, 1)}
    scores["ROUGE_L"] = float(Rouge().compute_score(gts, res)[0])
    scores["CIDEr"] = cider(gts, res)
    return {**scores, **{name: value for name in extra if (value := _java_score(name, gts, res)) is not None}}


@metrics.register("coco_caption", config=CocoCaptionKeys)
def coco_caption(
    predictions: Mapping[Any, str], references: Mapping[Any, Sequence[str]], keys: CocoCaptionKeys
) -> dict[str, float]:
    """`caption_scores` as a metric of a task."""
    return caption_scores(references, predictions, keys.extra)


def check_ids(references: Mapping[Any, Sequence[str]], predictions: Mapping[Any, str]) -> None:
    """Raise ConfigError if there is no image in common, or a prediction without a reference."""
    without = [key for key in predictions if not references.get(key)]
    if not predictions or len(without) == len(predictions):
        shown = f"predicted {_some(predictions)}, referenced {_some(references)}"
        what = f"predictions and references share no image id ({shown})"
        raise ConfigError("captions", what, "evaluate the split that the references belong to")
    if without:
        what = f"{len(without)} predictions have no reference ({_some(without)})"
        raise ConfigError("captions", what, "add references, or leave these images out")


def cider(references: Texts, predictions: Texts) -> float:
    """CIDEr (Vedantam et al., arXiv:1411.5726) of tokenised captions; 0 where no reference has a word."""
    if not any(text.split() for texts in references.values() for text in texts):
        return 0.0
    if len(references) == 1:
        log.warning("CIDEr of a single image is 0 by definition: no word can be rarer than another")
    return float(Cider().compute_score(references, predictions)[0])


def _java_score(name: str, references: Texts, predictions: Texts) -> float | None:
    if name not in ("METEOR", "SPICE"):
        raise ConfigError("metrics", f"no metric '{name}' of this kind", "METEOR and SPICE may be added")
    if shutil.which("java") is None:
        log.warning("%s is left out: it needs Java on the PATH", name)
        return None
    scorer = getattr(import_module(f"pycocoevalcap.{name.lower()}.{name.lower()}"), name.capitalize())
    return float(scorer().compute_score(references, predictions)[0])


def _some(keys: Collection[Any]) -> str:
    names = [repr(key) for key in list(keys)[:3]]
    return ", ".join(names) + (", …" if len(keys) > 3 else "") if names else "none"
