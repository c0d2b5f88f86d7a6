"""captioning: describe images, write COCO's result file, score it against the captions of the data set in use."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lavis_ext.errors import ConfigError
from lavis_ext.metrics import caption_scores
from lavis_ext.registry import tasks
from lavis_ext.tasks.base import Row, Task, first_by_id, merged_references, plain_id, write_result
from lavis_ext.types import Batch

log = logging.getLogger(__name__)
RECIPE = ("prompt", "num_beams", "max_len", "min_len", "repetition_penalty", "length_penalty")
References = dict[int | str, list[str]]


@tasks.register("captioning")
class Captioning(Task):
    """Generate with the `run:` section's beams and lengths; `agg_metrics` = CIDEr + Bleu_4, as in LAVIS."""

    evaluates = True

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
            length_penalty=run.length_penalty,
        )
        ids = [plain_id(name) for name in batch["image_id"]]
        return [{"caption": caption, "image_id": name} for caption, name in zip(captions, ids, strict=True)]

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """Write `{split}_epoch{epoch}.json` and its recipe; score what was predicted, unless `report_metric` is off."""
        results = first_by_id(rows, "image_id")
        name = f"{split}_epoch{epoch}"
        write_result(out_dir / f"{name}.json", results)
        metrics = self._score(results, datasets) if self.run.report_metric else {}
        recipe = {key: getattr(self.run, key) for key in RECIPE} | {"images": len(results), "metrics": metrics}
        recipe["prompt"] = self.run.prompt or getattr(self.network, "prompt", "")
        write_result(out_dir / f"{name}_recipe.json", recipe)
        return metrics

    def _score(self, results: Sequence[Row], datasets: Sequence[Any]) -> dict[str, float]:
        references = self._references(datasets)
        predictions = {row["image_id"]: row["caption"] for row in results if row["image_id"] in references}
        if len(predictions) < len(references):
            log.warning("%d of %d images were described; the metrics are theirs", len(predictions), len(references))
        scores = caption_scores(references, predictions)
        return {**scores, "agg_metrics": scores["CIDEr"] + scores["Bleu_4"]}

    def _references(self, datasets: Sequence[Any]) -> References:
        """From `run.annotation_file` if there is one, else from the data sets; only `run.img_ids`, if there are any."""
        run = self.run
        file = run.annotation_file
        references = (
            read_references(Path(file), run.sample_id_key or "image_id", run.caption_key)
            if file
            else merged_references(datasets)
        )
        wanted = {plain_id(name) for name in run.img_ids}
        return {name: texts for name, texts in references.items() if not wanted or name in wanted}


def read_references(path: Path, id_key: str, caption_key: str) -> References:
    """Captions by id from COCO's annotation form (`{"annotations": [{image_id, caption}]}`) or a list of such rows."""
    references: References = {}
    try:
        tree = json.loads(path.expanduser().read_text(encoding="utf-8"))
        for row in tree["annotations"] if isinstance(tree, dict) else tree:
            texts = row[caption_key]
            references.setdefault(plain_id(row[id_key]), []).extend([texts] if isinstance(texts, str) else texts)
    except OSError as error:
        raise ConfigError(f"run.annotation_file {path}", error.strerror or str(error), "check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        what = f"no list of rows with '{id_key}' and '{caption_key}' ({type(error).__name__}: {error})"
        raise ConfigError(f"run.annotation_file {path}", what, "set run.sample_id_key and run.caption_key") from error
    return references
