"""Tasks: the step, the rows, the result files, and what a subset is worth."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lavis_ext.common.config.schema import run_config
from lavis_ext.common.errors import ConfigError, DiskError
from lavis_ext.common.registry import RegistryError
from lavis_ext.metrics.scores import caption_scores
from lavis_ext.tasks import setup_task
from lavis_ext.tasks.base_task import plain_id, write_result
from tests.support.blip2 import small_batch, small_model, small_stage1

REFERENCES = {
    391895: ["a man rides a red bike", "a person on a bicycle"],
    60623: ["a girl eats a big cake", "a child with a cake on a table"],
    483108: ["a blue train near a platform", "a train stands at the station"],
}


@dataclass
class Captions:
    """The part of a data set that a task asks for."""

    captions: dict[Any, list[str]] = field(default_factory=lambda: dict(REFERENCES))
    name: str = "toy"

    def references(self) -> dict[Any, list[str]]:
        return self.captions


class Speaker(nn.Module):
    """Says what it is told to, and remembers how it was asked."""

    prompt = "a photo of"

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, Any] = {}

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {"loss": batch["image"].sum()}

    def generate(self, samples: dict[str, Any], **asked: Any) -> list[str]:
        self.asked = {**asked, "prompt": samples.get("prompt")}
        return [f"picture {name}" for name in samples["image_id"]]


def captioning(**keys: Any) -> Any:
    return setup_task(run_config(task="captioning", **keys), Speaker())


def rows(*pairs: tuple[Any, str]) -> list[dict[str, Any]]:
    return [{"caption": caption, "image_id": name} for name, caption in pairs]


PERFECT = rows(*((name, texts[0]) for name, texts in REFERENCES.items()))


def test_a_step_is_the_loss_of_the_model() -> None:
    model = small_model()
    for name in ("captioning", "image_text_pretrain"):
        task = setup_task(run_config(task=name), model)
        assert task.step(small_batch())["loss"].item() == model(small_batch())["loss"].item()


def test_rows_of_a_real_model() -> None:
    task = setup_task(run_config(task="captioning", num_beams=2, max_len=4), small_model())
    found = task.valid_step(small_batch())
    assert [row["image_id"] for row in found] == [0, 1, 2]
    assert json.loads(json.dumps(found)) == found


def test_the_run_section_is_the_recipe() -> None:
    task = captioning(num_beams=4, max_len=20, min_len=8, repetition_penalty=1.5, length_penalty=0.5, prompt="look:")
    found = task.valid_step({"image": torch.zeros(2, 3, 4, 4), "image_id": ["000000391895", torch.tensor(7)]})
    assert found == rows((391895, "picture 000000391895"), (7, "picture 7"))
    penalties = {"repetition_penalty": 1.5, "length_penalty": 0.5}
    assert task.model.asked == {"num_beams": 4, "max_length": 20, "min_length": 8, "prompt": "look:", **penalties}


def test_a_wrapped_model_still_generates() -> None:
    task = captioning()
    inner = task.model
    task.model = nn.Module()
    task.model.module = inner
    assert task.network is inner
    assert task.valid_step({"image": torch.zeros(1, 3, 4, 4), "image_id": [1]})[0]["caption"] == "picture 1"


def test_result_file_recipe_and_metrics(tmp_path: Path) -> None:
    task = captioning(num_beams=3)
    doubled = [*PERFECT, {"caption": "a repeated sample", "image_id": "000000391895"}]
    metrics = task.after_evaluation(doubled, "val", [Captions()], tmp_path, 2)
    assert json.loads((tmp_path / "val_epoch2.json").read_text()) == PERFECT
    assert metrics["agg_metrics"] == pytest.approx(metrics["CIDEr"] + metrics["Bleu_4"])
    assert metrics["Bleu_4"] == pytest.approx(1.0)
    recipe = json.loads((tmp_path / "val_epoch2_recipe.json").read_text())
    assert (recipe["prompt"], recipe["num_beams"], recipe["images"]) == ("a photo of", 3, 3)
    assert recipe["metrics"] == metrics
    assert sorted(path.name for path in tmp_path.iterdir()) == ["val_epoch2.json", "val_epoch2_recipe.json"]


def test_a_subset_is_scored_on_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = captioning().after_evaluation(PERFECT[:2], "val", [Captions()], tmp_path, "best")
    expected = caption_scores(
        {k: REFERENCES[k] for k in (391895, 60623)}, {r["image_id"]: r["caption"] for r in PERFECT[:2]}
    )
    assert metrics == {**expected, "agg_metrics": expected["CIDEr"] + expected["Bleu_4"]}
    assert "2 of 3 images" in caplog.text


def test_predictions_of_another_data_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="share no image id"):
        captioning().after_evaluation(rows((1, "a"), (2, "b")), "val", [Captions()], tmp_path, 0)
    assert (tmp_path / "val_epoch0.json").exists()


def test_without_report_metric_only_the_files_are_written(tmp_path: Path) -> None:
    assert captioning(report_metric=False).after_evaluation(PERFECT, "test", [], tmp_path, 0) == {}
    assert (tmp_path / "test_epoch0.json").exists()


def test_data_sets_of_one_split_must_agree_on_ids(tmp_path: Path) -> None:
    task, other = captioning(), Captions({"000000391895": ["something else"]}, name="other")
    with pytest.raises(ConfigError, match=r"datasets\.other.*391895"):
        task.after_evaluation(PERFECT, "val", [Captions(), other], tmp_path, 0)
    same = Captions({str(k): v for k, v in REFERENCES.items()})
    assert task.after_evaluation(PERFECT, "val", [Captions(), same], tmp_path, 0)["Bleu_4"] == pytest.approx(1.0)


def test_references_from_a_file_and_some_images_only(tmp_path: Path) -> None:
    notes = [{"image_id": name, "caption": text} for name, texts in REFERENCES.items() for text in texts]
    file = tmp_path / "gt.json"
    file.write_text(json.dumps({"annotations": notes}))
    expected = captioning().after_evaluation(PERFECT, "val", [Captions()], tmp_path, 0)
    assert captioning(annotation_file=str(file)).after_evaluation(PERFECT, "val", [], tmp_path, 0) == expected
    renamed = [{"img": name, "texts": texts} for name, texts in REFERENCES.items()]
    file.write_text(json.dumps(renamed))
    keys = {"annotation_file": str(file), "sample_id_key": "img", "caption_key": "texts"}
    assert captioning(**keys).after_evaluation(PERFECT, "val", [], tmp_path, 0) == expected
    two = captioning(img_ids=["391895", "60623"]).after_evaluation(PERFECT, "val", [Captions()], tmp_path, 0)
    assert two["CIDEr"] != expected["CIDEr"]
    for bad in ("{", "[1]", '{"rows": []}'):
        file.write_text(bad)
        with pytest.raises(ConfigError, match="annotation_file"):
            captioning(annotation_file=str(file)).after_evaluation(PERFECT, "val", [], tmp_path, 0)
    with pytest.raises(ConfigError, match="No such file"):
        captioning(annotation_file=str(tmp_path / "no")).after_evaluation(PERFECT, "val", [], tmp_path, 0)


def test_pretraining_validates_only_when_asked(tmp_path: Path) -> None:
    plain = setup_task(run_config(task="image_text_pretrain"), Speaker())
    assert not plain.evaluates
    assert plain.valid_step({"image": torch.zeros(1), "image_id": [1]}) == []
    assert plain.after_evaluation([], "val", [], tmp_path, 0) == {}
    asked = setup_task(run_config(task="image_text_pretrain", eval_task="captioning"), Speaker())
    assert asked.evaluates
    assert asked.valid_step({"image": torch.zeros(1), "image_id": [1]})[0]["caption"] == "picture 1"
    assert asked.after_evaluation(PERFECT, "val", [Captions()], tmp_path, 0)["Bleu_1"] == pytest.approx(1.0)


def test_unknown_tasks_say_the_nearest() -> None:
    for keys in ({"task": "captionin"}, {"task": "image_text_pretrain", "eval_task": "captionin"}):
        with pytest.raises(RegistryError, match="captioning"):
            setup_task(run_config(**keys), Speaker())  # type: ignore[arg-type]


def test_plain_ids() -> None:
    found = [plain_id(value) for value in ("000000391895", 7, torch.tensor(3), "coco_522418", "1e3", "²")]
    assert found == [391895, 7, 3, "coco_522418", "1e3", "²"]


def test_a_file_that_cannot_be_written_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        write_result(tmp_path / "file" / "a.json", {})


@dataclass
class Nocaps(Captions):
    """Captions whose rows tell a domain."""

    domains: tuple[str, ...] = ("in-domain", "near-domain", "near-domain")

    def __len__(self) -> int:
        return len(self.domains)

    def row(self, index: int) -> dict[str, Any]:
        return {"img_id": list(REFERENCES)[index], "domain": self.domains[index]}

    def image_id(self, row: dict[str, Any]) -> int:
        return int(row["img_id"])


def test_nocaps_by_domain(tmp_path: Path) -> None:
    task = setup_task(run_config(task="nocaps"), Speaker())
    metrics = task.after_evaluation(PERFECT, "val", [Nocaps()], tmp_path, 0)
    names = list(REFERENCES)
    near = {name: REFERENCES[name][0] for name in names[1:]}
    assert metrics["near-domain_CIDEr"] == pytest.approx(caption_scores(REFERENCES, near)["CIDEr"])
    assert metrics["agg_metrics"] == pytest.approx(metrics["CIDEr"] + metrics["Bleu_4"])
    assert not any(name.startswith("out-domain") for name in metrics)
    written = json.loads((tmp_path / "val_epoch0_near-domain.json").read_text())
    assert [row["image_id"] for row in written] == names[1:]
    assert not (tmp_path / "val_epoch0_out-domain.json").exists()


def test_a_split_without_captions_is_written_and_not_scored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert captioning().after_evaluation(PERFECT, "test", [Captions({})], tmp_path, 0) == {}
    assert (tmp_path / "test_epoch0.json").exists()
    assert "nothing is scored" in caplog.text


def test_a_model_that_cannot_do_the_task_is_told_at_once() -> None:
    for name, model in (("vqa", small_stage1()), ("retrieval", small_model())):
        with pytest.raises(ConfigError, match=r"run\.task: .*choose another task"):
            setup_task(run_config(task=name), model)
    with pytest.raises(ConfigError, match=r"VqaTask .*`predict_answers`.* Blip2 "):
        setup_task(run_config(task="image_text_pretrain", eval_task="vqa"), small_stage1())


def test_scripts_import_from_the_first_places_and_a_plain_section_has_the_defaults_of_its_task() -> None:
    from lavis_ext import schema
    from lavis_ext.tasks import base
    from lavis_ext.tasks.settings import VqaConfig

    task = base.setup_task(schema.RunConfig(task="vqa", max_epoch=3))
    assert task.run == VqaConfig(task="vqa", max_epoch=3)
