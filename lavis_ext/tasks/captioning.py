"""captioning: describe images, write COCO's result file, score it against the captions of the data set in use.

Where samples have domains, as NoCaps' do, each domain is also written and scored by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.errors import ConfigError
from lavis_ext.common.files import decode_json, expanded
from lavis_ext.common.registry import tasks
from lavis_ext.common.types import Batch
from lavis_ext.metrics import measure
from lavis_ext.tasks.base_task import (
    BaseTask,
    Row,
    as_metrics,
    first_by_id,
    merged_references,
    plain_id,
    require_distinct,
    write_result,
)
from lavis_ext.tasks.settings import CaptioningConfig

log = logging.getLogger(__name__)
RECIPE = ("prompt", "num_beams", "max_len", "min_len", "repetition_penalty")
References = dict[int | str, list[str]]
Domains = dict[int | str, str]
DOMAINS = ("in-domain", "near-domain", "out-domain")
"""NoCaps' domains: whether COCO's captions name the objects of an image."""
CAPTION_LENGTH_PENALTY = 1.0


@tasks.register("nocaps", config=CaptioningConfig)
@tasks.register("captioning", config=CaptioningConfig)
class Captioning(BaseTask):
    """Generate with the `run:` section's beams and lengths; `agg_metrics` = CIDEr + Bleu_4, as in LAVIS."""

    evaluates = True
    reports = True
    needs: tuple[str, ...] = ("generate",)

    def before_evaluation(self, split: str, datasets: Sequence[Any]) -> None:
        """Refuse data sets whose pictures have the same ids; raises ConfigError."""
        require_distinct(split, datasets)
        super().before_evaluation(split, datasets)

    def valid_step(self, batch: Batch) -> list[Row]:
        """`image` [B,3,H,W] and `image_id` → one {caption, image_id} an image."""
        run = self.run
        samples = {**batch, "prompt": run.prompt} if run.prompt else batch
        captions = self.network.generate(
            samples,
            num_beams=run.num_beams,
            max_length=run.max_len,
            min_length=run.min_len,
            repetition_penalty=run.repetition_penalty,
            length_penalty=self.length_penalty,
        )
        ids = [plain_id(name) for name in batch["image_id"]]
        return [{"caption": caption, "image_id": name} for caption, name in zip(captions, ids, strict=True)]

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """Write `{split}_epoch{epoch}.json` and its recipe; score the predictions, unless `report_metric` is off.

        With domains, `{split}_epoch{epoch}_{domain}.json` too, and metrics under `{domain}_{name}`.
        """
        results = first_by_id(rows, "image_id")
        name, domains = f"{split}_epoch{epoch}", find_domains(datasets)
        write_result(out_dir / f"{name}.json", results)
        groups = {domain: [row for row in results if domains.get(row["image_id"]) == domain] for domain in DOMAINS}
        groups = {domain: group for domain, group in groups.items() if group}
        for domain, group in groups.items():
            write_result(out_dir / f"{name}_{domain}.json", group)
        metrics: dict[str, float] = {}
        if self.run.report_metric:
            self._written = results, groups, datasets
            metrics = as_metrics(self._report_metrics(eval_result_file=str(out_dir / f"{name}.json"), split_name=split))
        recipe = {key: getattr(self.run, key) for key in RECIPE} | {"images": len(results), "metrics": metrics}
        recipe["prompt"] = self.run.prompt or getattr(self.network, "prompt", "")
        recipe["length_penalty"] = self.length_penalty
        write_result(out_dir / f"{name}_recipe.json", recipe)
        return metrics

    @property
    def length_penalty(self) -> float:
        """`run.length_penalty`, else LAVIS' value for captions."""
        return CAPTION_LENGTH_PENALTY if self.run.length_penalty is None else self.run.length_penalty

    def _report_metrics(self, eval_result_file: str, split_name: str) -> dict[str, float]:
        """The scores of a result file that was just written (LAVIS' method)."""
        return self._score(*self._written)

    def _score(
        self, results: Sequence[Row], groups: Mapping[str, Sequence[Row]], datasets: Sequence[Any]
    ) -> dict[str, float]:
        references = self._references(datasets)
        if not references:
            log.warning("no image has a caption to compare with: the result file is written, nothing is scored")
            return {}
        predictions = {row["image_id"]: row["caption"] for row in results if row["image_id"] in references}
        if len(predictions) < len(references):
            log.warning("%d of %d images were described; the metrics are theirs", len(predictions), len(references))
        java = {"extra": self.run.extra_metrics}
        named = [
            replace(one, args={**java, **one.args}) if one.name == "coco_caption" else one for one in self.run.metrics
        ]
        scores = measure(named, predictions, references)
        metrics = {**scores, "agg_metrics": checkpoint_score(scores)}
        for domain, group in groups.items():
            names = {row["image_id"] for row in group} & predictions.keys()
            part = measure(self.run.metrics, {name: predictions[name] for name in names}, references) if names else {}
            metrics |= {f"{domain}_{metric}": value for metric, value in part.items()}
        return metrics

    def _references(self, datasets: Sequence[Any]) -> References:
        """From `run.annotation_file` if there is one, else from the data sets; only `run.img_ids`, if there are any."""
        run = self.run
        file = "" if is_known_url(run.annotation_file or "") else run.annotation_file
        references = (
            read_references(Path(file), run.sample_id_key or "image_id", run.caption_key)
            if file
            else merged_references(datasets)
        )
        wanted = {plain_id(name) for name in run.img_ids}
        return {name: texts for name, texts in references.items() if not wanted or name in wanted}


def is_known_url(name: str) -> bool:
    """Whether a name is the URL of a file of a card: the data sets in use have its captions.

    Raises ConfigError for any other URL.
    """
    if "://" not in name:
        return False
    artifacts = [artifact for card in load_cards().families.values() for artifact in card.artifacts.values()]
    if any(name in (artifact.url, *(mirror.url for mirror in artifact.mirrors)) for artifact in artifacts):
        return True
    raise ConfigError(f"run.annotation_file {name}", "is a URL of no card", "fetch it, and name the file")


def checkpoint_score(scores: Mapping[str, float]) -> float:
    """The value that selects the best checkpoint: LAVIS' CIDEr + Bleu_4, else the first score."""
    found = [scores[name] for name in ("CIDEr", "Bleu_4") if name in scores]
    return sum(found) if found else next(iter(scores.values()))


def find_domains(datasets: Sequence[Any]) -> Domains:
    """The `domain` of each image, for data sets whose rows have one."""
    found: Domains = {}
    for dataset in datasets:
        if not hasattr(dataset, "image_id") or not len(dataset) or "domain" not in dataset.row(0):
            continue
        rows = (dataset.row(index) for index in range(len(dataset)))
        found |= {plain_id(dataset.image_id(row)): str(row["domain"]) for row in rows if row.get("domain")}
    return found


def read_references(path: Path, id_key: str, caption_key: str) -> References:
    """Captions by id from COCO's annotation form (`{"annotations": [{image_id, caption}]}`) or a list of such rows."""
    references: References = {}
    try:
        tree = decode_json(expanded(path).read_text(encoding="utf-8"))
        for row in tree["annotations"] if isinstance(tree, dict) else tree:
            texts = row[caption_key]
            references.setdefault(plain_id(row[id_key]), []).extend([texts] if isinstance(texts, str) else texts)
    except OSError as error:
        raise ConfigError(f"run.annotation_file {path}", error.strerror or str(error), "check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        what = f"no list of rows with '{id_key}' and '{caption_key}' ({type(error).__name__}: {error})"
        raise ConfigError(f"run.annotation_file {path}", what, "set run.sample_id_key and run.caption_key") from error
    return references


CaptionTask = Captioning
"""LAVIS' name."""
