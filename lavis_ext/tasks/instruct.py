"""instruct: train on conversations; the loss of held-out ones, and what the model answers to the first of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import fsum
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from lavis_ext.common.errors import ConfigError
from lavis_ext.common.registry import tasks
from lavis_ext.common.types import Batch
from lavis_ext.datasets.builders.conversation import before_answer
from lavis_ext.datasets.readers.conversations import IMAGE
from lavis_ext.tasks.base_task import BaseTask, Row, write_result
from lavis_ext.tasks.settings import InstructConfig

log = logging.getLogger(__name__)


@tasks.register("instruct", config=InstructConfig)
class Instruct(BaseTask):
    """`agg_metrics` is the negative held-out loss: the mean over all tokens that the assistant says in a split.

    The model takes `conversations`, `image` and `image_counts`; `generate` continues conversations that end with a
    user's turn.
    """

    evaluates = True
    needs: tuple[str, ...] = ("generate", "outputs")

    def bind(self, model: Any) -> None:
        """Use this model; raises ConfigError for one that reads no conversations."""
        super().bind(model)
        if not getattr(self.network, "converses", False):
            what = f"{type(self.network).__name__} reads no conversations"
            raise ConfigError("run.task", what, "take a model that does: blip2_causal, blip2_seq2seq")

    def before_evaluation(self, split: str, datasets: Sequence[Any]) -> None:
        """Refuse data sets of another shape; raises ConfigError."""
        for dataset in datasets:
            if not hasattr(dataset, "turns"):
                what = f"'{getattr(dataset, 'name', '')}' gives no conversations"
                raise ConfigError(f"split '{split}'", what, "take a data set of the shape conversation")
        super().before_evaluation(split, datasets)

    def valid_step(self, batch: Batch) -> list[Row]:
        """One row a sample, with its `sample_id`; of the first, `loss` is the sum over the `tokens` of the batch.

        The first `max_generated` samples of each data set have `conversations` (what was asked), `answer`, `reference`.
        """
        found = self.network.outputs(batch)  # not `forward`: with `loss_mean: all` ranks wait for each other there
        labels = found.extra["labels"]
        loss = cross_entropy(found.logits.float(), labels, reduction="sum")
        rows: list[Row] = [{"sample_id": name} for name in batch["sample_id"]]
        rows[0] |= {"loss": float(loss), "tokens": len(labels)}
        chosen = [i for i, number in enumerate(batch["instance_id"]) if int(number) < self.run.max_generated]
        if chosen:
            room = self.network.fits(self.asked(batch, chosen)[0])
            if long := [rows[i]["sample_id"] for i, fits in zip(chosen, room, strict=True) if not fits]:
                log.warning("not answered, as model.max_chat_len leaves no room: %s", ", ".join(map(str, long)))
            chosen = [i for i, fits in zip(chosen, room, strict=True) if fits]
        if chosen:
            part, references = self.asked(batch, chosen)
            for i, turns, answer, said in zip(
                chosen, part["conversations"], self.answers(part), references, strict=True
            ):
                rows[i] |= {"conversations": turns, "answer": answer, "reference": said}
        return rows

    def answers(self, samples: Batch) -> list[str]:
        """What the model says after conversations that end with a user's turn."""
        run = self.run
        lengths = {"num_beams": run.num_beams, "max_length": run.max_len, "min_length": run.min_len}
        penalty = {} if run.length_penalty is None else {"length_penalty": run.length_penalty}
        found: list[str] = self.network.generate(samples, **lengths, **penalty)
        return found

    def asked(self, batch: Batch, chosen: Sequence[int]) -> tuple[Batch, list[str]]:
        """These samples up to the last turn of the assistant, with their pictures, and what it says there."""
        cut = [before_answer(batch["conversations"][i]) for i in chosen]
        counts = [sum(turn["content"].count(IMAGE) for turn in turns) for turns, _ in cut]
        part: Batch = {"conversations": [turns for turns, _ in cut], "image_counts": counts}
        if sum(counts):
            starts = [sum(batch["image_counts"][:i]) for i in chosen]
            images: Tensor = batch["image"]
            part["image"] = images[[at + n for at, count in zip(starts, counts, strict=True) for n in range(count)]]
        return part, [said for _, said in cut]

    def after_evaluation(
        self, rows: Sequence[Row], split: str, datasets: Sequence[Any], out_dir: Path, epoch: int | str
    ) -> dict[str, float]:
        """Write `{split}_epoch{epoch}.json`, the conversations that were answered; the loss of the split."""
        write_result(out_dir / f"{split}_epoch{epoch}.json", answered(rows))
        total = sum(row.get("tokens", 0) for row in rows)
        if not total:
            return {}
        loss = fsum(row.get("loss", 0.0) for row in rows) / total
        return {"loss": loss, "agg_metrics": -loss}


def answered(rows: Sequence[Row]) -> list[Row]:
    """The samples for which the model wrote something, each once."""
    names = ("sample_id", "conversations", "answer", "reference")
    found = {row["sample_id"]: {name: row[name] for name in names} for row in rows if "answer" in row}
    return list(found.values())
