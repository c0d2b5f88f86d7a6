"""A run file that asks for distillation: typed, checked as a whole, and made into teacher and student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lavis_ext.common.config.check import check_file
from lavis_ext.common.config.resolve import load_config
from lavis_ext.common.config.schema import ModelConfig
from lavis_ext.common.errors import ConfigError, UnsafeError
from lavis_ext.distill.settings import DistillConfig, known_depth
from lavis_ext.distill.teacher import build_teacher, digest, teacher_section
from lavis_ext.models import build_model
from lavis_ext.models.weights import own_checkpoint
from lavis_ext.oscar.config import OscarConfig
from lavis_ext.runners import checkpoint
from lavis_ext.tasks import setup_task
from tests.support.distilling import LABELS, oscar, run_section, section
from tests.support.oscar import SMALL, oscar_state, write_checkpoint

RUN = """
model: {arch: oscar, model_type: base, num_hidden_layers: 6, num_labels: 7, loss_type: bce, pretrained: WEIGHTS}
datasets: {oscar_vqa: {}}
run:
  task: distill
  max_epoch: 1
  train_splits: [train]
  distill:
    task: oscar_vqa
    teacher: {pretrained: TEACHER, drop_out: 0.2}
    terms: [mkd, {name: pkd, weight: 1000}, {name: akd, max_temperature: 5}]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good run file, with the folders that it names."""
    for name in ("weights", "teacher"):
        write_checkpoint(tmp_path / name, oscar_state(SMALL, seed=len(name)), SMALL)
    text = RUN.replace("WEIGHTS", str(tmp_path / "weights")).replace("TEACHER", str(tmp_path / "teacher"))
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def problems(path: Path, **changes: str) -> str:
    text = path.read_text()
    for before, after in changes.items():
        text = text.replace({"section": "    task: oscar_vqa\n"}.get(before, before), after)
    path.write_text(text)
    return "\n".join(str(problem) for problem in check_file(path))


def test_a_teachers_section_is_its_students_but_for_the_depth(file: Path) -> None:
    config = load_config(file)
    distill = config.run.distill
    assert distill is not None
    assert config.model is not None
    teacher = distill.teacher
    assert isinstance(teacher, ModelConfig)
    assert (teacher.loss_type, teacher.num_labels, teacher.drop_out) == ("bce", 7, 0.2)
    assert teacher.num_hidden_layers is None
    assert config.model.num_hidden_layers == 6
    assert [(t.name, t.weight, t.args) for t in distill.terms] == [
        ("mkd", None, {}), ("pkd", 1000.0, {}), ("akd", None, {"max_temperature": 5}),
    ]  # fmt: skip
    assert problems(file) == ""


def test_a_teacher_of_another_type_has_that_types_values(file: Path) -> None:
    text = file.read_text().replace("{pretrained", "{model_type: large, pretrained")
    file.write_text(text)
    distill = load_config(file).run.distill
    assert distill is not None
    assert isinstance(distill.teacher, ModelConfig)
    assert distill.teacher.model_type == "large"
    assert distill.teacher.loss_type == "ce"
    file.write_text(text.replace("large", "huge"))
    assert "run.distill.teacher.model_type" in problems(file)


def test_options_reach_the_section(file: Path) -> None:
    config = load_config(
        file, ["run.distill.alpha=0.25", "run.distill.kd_weights={full: 1}", "run.distill.strategy=[[0,1]]"]
    )
    distill = config.run.distill
    assert distill is not None
    assert (distill.alpha, distill.kd_weights, distill.strategy) == (0.25, {"full": 1.0}, [[0, 1]])


def test_check_tells_all_mistakes_with_their_lines(file: Path) -> None:
    more = {
        "max_temperature: 5": "temperatures: 5",
        "section": (
            "    task: oscar_vqs\n    alpha: 2\n    strategy: skip\n    teacher_update: reptile\n"
            "    cache: float16\n    inner_steps: 0\n    kd_weights: {full: 1, sound: 1}\n"
        ),
        "num_hidden_layers: 6": "num_hidden_layers: 5",
        "drop_out: 0.2": "num_labels: 9",
        "max_epoch: 1": "max_epoch: 1\n  precision: fp16\n  parallel: fsdp",
    }
    found = problems(file, **more)
    for part in (
        "no task named 'oscar_vqs' that can be distilled; did you mean 'oscar_vqa'",
        "run.distill.alpha: 2.0 is out of its range",
        "'skip' wants a teacher with a multiple of 5 layers, this one has 12",
        "gives other logits after every step",
        "'pkd' reads more of the teacher than its logits",
        "run.distill.inner_steps: 0 is out of its range",
        "'oscar' has no view 'sound'",
        "run.distill.terms[2].temperatures: unknown key; did you mean 'max_temperature'",
        "the teacher has 9 labels, the student 7",
        "fp16 gradients",
        "parallel: ddp",
    ):
        assert part in found, part
    assert f"{file}:" in found


def test_a_missing_section_and_one_that_nobody_reads(file: Path) -> None:
    text = file.read_text()
    file.write_text(text.split("  distill:")[0])
    assert "run.distill: is missing" in problems(file)
    file.write_text(text.replace("task: distill", "task: oscar_vqa"))
    assert "run.distill: is not read here; remove it; it is a key of task distill" in problems(file)


def test_a_term_twice_and_none(file: Path) -> None:
    terms = "terms: [mkd, {name: pkd, weight: 1000}, {name: akd, max_temperature: 5}]"
    assert "'mkd' is there twice" in problems(file, **{terms: "terms: [mkd, mkd, {name: td, weight: -1}]"})
    assert "run.distill.terms[2].weight: -1.0 is out of its range" in problems(file)
    assert "names none" in problems(file, **{"terms: [mkd, mkd, {name: td, weight: -1}]": "terms: []"})


def test_layers_are_chosen_once(file: Path) -> None:
    found = problems(
        file,
        **{
            "num_labels: 7": "num_labels: 7, layers: [0, 2, 4, 6, 8, 10]",
            "section": "    task: oscar_vqa\n    student_init: skip\n",
        },
    )
    assert "both choose layers" in found


def test_recomputed_activations_want_one_inner_step(file: Path) -> None:
    section = "    task: oscar_vqa\n    teacher_update: reptile\n    inner_steps: 2\n"
    changed = {"num_labels: 7": "num_labels: 7, use_grad_checkpoint: True", "section": section}
    assert "model.use_grad_checkpoint" in problems(file, **changed)
    assert problems(file, **{"inner_steps: 2": "inner_steps: 1"}) == ""


def test_depths_are_read_where_they_are_written(tmp_path: Path) -> None:
    assert known_depth(section(5)) == 5
    assert known_depth(OscarConfig(arch="oscar", model_type="base", num_hidden_layers=4)) == 4
    assert known_depth(OscarConfig(arch="oscar", model_type="base", pretrained="nowhere")) is None
    (tmp_path / "config.json").write_text("[]")
    assert known_depth(OscarConfig(arch="oscar", model_type="base", pretrained=str(tmp_path))) is None
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 3}))
    assert known_depth(OscarConfig(arch="oscar", model_type="base", pretrained=str(tmp_path))) == 3


# --- where a teacher comes from -------------------------------------------------------------------------------------


def saved_run(folder: Path, layers: int = 4) -> tuple[Path, Any]:
    """A run of ours with one checkpoint, and the model that is in it."""
    model = oscar(layers, 9)
    job = folder / "job"
    job.mkdir(parents=True)
    config = {"model": {"arch": "oscar", "model_type": "base", **_plain(section(layers))}}
    (job / "config.yaml").write_text(yaml.safe_dump(config))
    checkpoint.save(job, 3, checkpoint.model_tensors(model), {}, best=True)
    return job, model


def _plain(model: ModelConfig) -> dict[str, Any]:
    keys = ("sizes", "img_feature_dim", "num_labels", "drop_out", "load_pretrained")
    return {key: getattr(model, key) for key in keys}


@pytest.mark.parametrize("where", ["", "checkpoint_3", "checkpoint_best"])
def test_a_run_of_ours_is_a_teacher(where: str, tmp_path: Path) -> None:
    job, model = saved_run(tmp_path)
    run = run_section(teacher=str(job / where))
    assert run.distill is not None
    teacher = build_teacher(run.distill, section(2))
    assert digest(teacher) == digest(model)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training
    task = setup_task(run, oscar(2, 1))
    assert len(task.teacher.encoder_layers()) == 4


def test_a_folder_of_upstream_is_a_teacher_with_all_its_layers(tmp_path: Path) -> None:
    state = oscar_state(SMALL)
    folder = write_checkpoint(tmp_path / "teacher", state, SMALL)
    student = OscarConfig(
        arch="oscar", model_type="base", pretrained=str(folder), num_hidden_layers=6, img_feature_dim=14
    )
    found = teacher_section(str(folder), student)
    assert (found.num_hidden_layers, found.pretrained) == (None, str(folder))
    run = run_section(teacher=str(folder))
    assert run.distill is not None
    teacher = build_teacher(run.distill, student)
    assert len(teacher.encoder_layers()) == 12
    assert torch.equal(teacher.state_dict()["network.head.weight"], state["classifier.weight"])


@pytest.mark.parametrize(("start", "layers"), [("first", range(6)), ("last", range(6, 12)), ("skip", range(1, 12, 2))])
def test_the_student_starts_from_layers_of_the_pretrained(start: str, layers: range, tmp_path: Path) -> None:
    state = oscar_state(SMALL)
    folder = write_checkpoint(tmp_path / "weights", state, SMALL)
    student = build_model(
        OscarConfig(
            arch="oscar",
            model_type="base",
            pretrained=str(folder),
            num_hidden_layers=6,
            num_labels=7,
            img_feature_dim=14,
        )
    )
    teacher = write_checkpoint(tmp_path / "teacher", oscar_state(SMALL, seed=5), SMALL)
    setup_task(run_section(teacher=str(teacher), student_init=start), student)
    for number, layer in enumerate(layers):
        mine = student.state_dict()[f"network.bert.encoder.layer.{number}.output.dense.weight"]
        assert torch.equal(mine, state[f"bert.encoder.layer.{layer}.output.dense.weight"])


class Bomb:
    """Runs code where it is unpickled carelessly."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("exploded").touch, ())


@pytest.mark.fault("D08")
def test_a_pickle_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_checkpoint(tmp_path / "teacher", oscar_state(SMALL), SMALL)
    torch.save({"classifier.weight": Bomb()}, folder / "pytorch_model.bin")
    run = run_section(teacher=str(folder))
    with pytest.raises(UnsafeError) as caught:
        setup_task(run, oscar(2, 1))
    assert caught.value.exit_code == 10
    assert not (tmp_path / "exploded").exists()


def test_a_checkpoint_without_its_run_is_told(tmp_path: Path) -> None:
    job, _ = saved_run(tmp_path)
    (job / "config.yaml").unlink()
    run = run_section(teacher=str(job))
    assert run.distill is not None
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        build_teacher(run.distill, section(2))


def test_no_teacher_there(tmp_path: Path) -> None:
    assert own_checkpoint(tmp_path) is None
    with pytest.raises(ConfigError, match=r"run\.distill\.teacher\.pretrained .*nowhere"):
        setup_task(run_section(teacher=str(tmp_path / "nowhere")), oscar(2, 1))


def test_a_teacher_of_fewer_layers_is_told(tmp_path: Path) -> None:
    job, _ = saved_run(tmp_path, layers=2)
    with pytest.raises(ConfigError, match="5 layers and its teacher 2"):
        setup_task(run_section(teacher=str(job), teacher_update="reptile"), oscar(5, 1))
    assert LABELS == 4


@pytest.mark.parametrize(("own", "labels"), [(None, 7), (3, 3)])
def test_a_teacher_that_names_no_labels_has_its_students(own: int | None, labels: int) -> None:
    teacher = OscarConfig(arch="oscar", model_type="base", num_labels=own)
    student = OscarConfig(arch="oscar", model_type="base", num_labels=7)
    assert teacher_section(teacher, student).num_labels == labels  # type: ignore[attr-defined]


def test_the_shares_of_the_views_are_those_that_were_published() -> None:
    """One half for both together, a quarter for each alone."""
    settings = DistillConfig(task="vqa", teacher="a folder")
    assert settings.kd_weights == {"full": 0.5, "text": 0.25, "image": 0.25}
