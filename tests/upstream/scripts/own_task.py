"""A task in LAVIS' manner: keys of its own from `run:`, results through `save_result`."""

import json
import os

from lavis.common.dist_utils import main_process
from lavis.common.registry import registry
from lavis.tasks.base_task import BaseTask


@registry.register_task("lavis_lengths")
class LengthTask(BaseTask):
    def __init__(self, most_words, evaluate, report_metric=True):
        super().__init__()
        self.most_words = most_words
        self.evaluate = evaluate
        self.report_metric = report_metric
        self.seen = []

    @classmethod
    def setup_task(cls, cfg):
        run_cfg = cfg.run_cfg
        return cls(most_words=run_cfg.most_words, evaluate=run_cfg.get("evaluate", False))

    def before_evaluation(self, model, dataset, **kwargs):
        super().before_evaluation(model=model, dataset=dataset)
        self.seen.append(len(dataset))

    def train_step(self, model, samples):
        output = model(samples)
        return output["loss"], {"loss": output["loss"], "loss_length": output.loss_length}

    def valid_step(self, model, samples):
        captions = model.generate(samples, max_length=5)
        return [{"caption": c, "image_id": int(i)} for c, i in zip(captions, samples["image_id"])]

    def after_evaluation(self, val_result, split_name, epoch, **kwargs):
        file = self.save_result(
            result=val_result,
            result_dir=registry.get_path("result_dir"),
            filename=f"{split_name}_epoch{epoch}",
            remove_duplicate="image_id",
        )
        return self._report_metrics(file, split_name)

    @main_process
    def _report_metrics(self, eval_result_file, split_name):
        rows = json.load(open(eval_result_file))
        short = [len(row["caption"].split()) <= self.most_words for row in rows]
        with open(os.path.join(registry.get_path("output_dir"), "evaluate.txt"), "a") as file:
            file.write(json.dumps({split_name: sum(short)}) + "\n")
        return {"agg_metrics": sum(short) / len(short), "seen": self.seen[-1]}


@registry.register_task("lavis_lengths_looped")
class LoopedTask(LengthTask):
    """The same with a loop of its own."""

    def train_epoch(self, epoch, model, data_loader, optimizer, lr_scheduler, scaler=None, **kwargs):
        total = 0.0
        for step in range(len(data_loader)):
            samples = next(data_loader)
            lr_scheduler.step(cur_epoch=epoch, cur_step=step)
            loss, _ = self.train_step(model=model, samples=samples)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()
        return {"loss": f"{total / len(data_loader):.6f}"}
