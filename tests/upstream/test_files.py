"""Files in LAVIS' manner: checkpoints as `pretrained`, folders of its authors, what is taken out or not served."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.common.config.check import check_file, load_checked, require_sizes
from lavis_ext.common.config.resolve import load_config
from lavis_ext.common.errors import ConfigError, IntegrityError, NetworkError
from lavis_ext.common.lavis import out_of_scope
from lavis_ext.fetch.mirrors import mirror_path
from lavis_ext.models.weights import FETCHED, own_checkpoint, read_checkpoint, to_upstream, with_local_weights
from lavis_ext.models.zoo import build_model
from lavis_ext.runners.data import open_datasets
from lavis_ext.runners.run import named_checkpoint
from tests.support.blip2 import SIZES, TEXT_SIZES, of_arch, small_batch, small_of, small_stage1

STAGE1 = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/blip2_pretrained.pth"


def first_stage(folder: Path, url: str = STAGE1, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Put a first stage, as LAVIS saves it, where a mirror in `folder` has a URL; its tensors under LAVIS' names."""
    state = to_upstream(small_stage1(3, freeze_vit=False, cross_attention_freq=1).trainable_state()) | more
    path = folder / mirror_path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state, "epoch": 2}, path)
    return state


def section(arch: str, **keys: Any) -> Any:
    sizes = {**SIZES, "text_config": TEXT_SIZES[arch]} if arch in TEXT_SIZES else SIZES
    return of_arch(arch, sizes=sizes, load_pretrained=True, **keys)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv("LAVIS_EXT_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "cache"))
    return tmp_path / "mirror"


@pytest.mark.parametrize("arch", ["blip2_opt", "blip2_t5", "blip2_llama", "blip2_vicuna"])
def test_a_second_stage_starts_from_the_checkpoint_of_a_first(arch: str, mirror: Path, tmp_path: Path) -> None:
    state = first_stage(mirror)
    torch.manual_seed(0)
    model: Any = build_model(section(arch, pretrained=STAGE1))
    assert torch.equal(model.net.query_tokens, state["query_tokens"])
    assert torch.equal(model.net.vision_model.post_layernorm.weight, state["ln_vision.weight"])
    assert torch.isfinite(model(small_batch())["loss"])
    (mirror / mirror_path(STAGE1)).unlink()
    again: Any = build_model(section(arch, pretrained=STAGE1))  # fetched once
    assert torch.equal(again.net.query_tokens, state["query_tokens"])
    assert (tmp_path / "cache" / "models" / mirror_path(STAGE1)).is_file()


def test_a_fetched_checkpoint_is_not_called_verified(mirror: Path, caplog: pytest.LogCaptureFixture) -> None:
    first_stage(mirror)
    with caplog.at_level(logging.WARNING):
        build_model(section("blip2_opt", pretrained=STAGE1))
    assert "model.pretrained: fetched" in caplog.text
    assert "not verified" in caplog.text


def test_projections_of_another_language_model_are_skipped(tmp_path: Path) -> None:
    width = SIZES["qformer_config"]["hidden_size"]
    foreign = torch.full((TEXT_SIZES["blip2_llama"]["hidden_size"], width), 7.0)
    first_stage(tmp_path, **{"opt_proj.weight": foreign, "opt_model.lm_head.weight": torch.zeros(3, 3)})
    path = str(tmp_path / mirror_path(STAGE1))
    llama: Any = build_model(section("blip2_llama", pretrained=path))
    assert not (llama.net.language_projection.weight == 7).any()
    first_stage(tmp_path, **{"llama_proj.weight": foreign})
    llama = build_model(section("blip2_llama", pretrained=path))
    assert (llama.net.language_projection.weight == 7).all()


def test_what_is_no_blip2_is_refused(tmp_path: Path, mirror: Path) -> None:
    with pytest.raises(ConfigError, match="no such file") as caught:
        build_model(section("blip2_opt", pretrained=str(tmp_path / "none.pth")))
    assert caught.value.exit_code == 3
    torch.save({"model": {"opt_proj.weight": torch.zeros(1)}}, tmp_path / "a.pth")
    with pytest.raises(IntegrityError, match="no Q-Former"):
        build_model(section("blip2_opt", pretrained=str(tmp_path / "a.pth")))
    first_stage(tmp_path, query_tokens=torch.zeros(1, 5, 5))
    with pytest.raises(IntegrityError, match=r"another shape: net\.query_tokens"):
        build_model(section("blip2_opt", pretrained=str(tmp_path / mirror_path(STAGE1))))
    with pytest.raises(NetworkError, match="blip2_pretrained"):
        build_model(section("blip2_opt", pretrained=STAGE1))


def test_the_tower_that_lavis_fetches(mirror: Path, tmp_path: Path) -> None:
    state = first_stage(mirror)
    bare = {name: tensor for name, tensor in state.items() if not name.startswith("visual_encoder.")}
    torch.save({"model": bare}, mirror / mirror_path(STAGE1))
    tower = {n.removeprefix("visual_encoder."): t + 1 for n, t in state.items() if n.startswith("visual_encoder.")}
    beyond = {f"blocks.39.{n.split('.', 2)[2]}": t for n, t in tower.items() if n.startswith("blocks.0.")}
    torch.save({**tower, **beyond, "norm.weight": torch.ones(1)}, mirror / mirror_path(FETCHED["eva_clip_g"]))
    config = section("blip2_opt", pretrained=STAGE1)
    found = with_local_weights(type(config)(**{**vars(config), "sizes": {}}), tmp_path / "cache")
    assert Path(found.vit_weights).name == "eva_vit_g.pth"
    model: Any = build_model(section("blip2_opt", pretrained=found.pretrained, vit_weights=found.vit_weights))
    assert torch.equal(model.net.vision_model.embeddings.class_embedding, state["visual_encoder.cls_token"] + 1)


def test_a_first_stage_from_a_checkpoint(mirror: Path) -> None:
    state = first_stage(mirror)
    model: Any = build_model(section("blip2", pretrained=STAGE1, cross_attention_freq=1, embed_dim=16, max_txt_len=12))
    assert torch.equal(model.temp, state["temp"])
    assert torch.equal(model.net.itm_head.weight, state["itm_head.weight"])


def test_the_folder_of_a_run_is_its_best_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for number, name in ((1, "checkpoint_1"), (2, "checkpoint_2")):
        (run / name).mkdir(parents=True)
        torch.save({"model": {"temp": torch.tensor(float(number))}}, run / name / "x.pth")
        (run / name / "manifest.json").write_text("{}")
    (run / "latest.json").write_text(json.dumps({"checkpoint": "checkpoint_2"}))
    assert own_checkpoint(run) == run / "checkpoint_2"
    assert named_checkpoint(str(run)) == run / "checkpoint_2"
    (run / "best.json").write_text(json.dumps({"checkpoint": "checkpoint_1"}))
    assert own_checkpoint(run) == run / "checkpoint_1"
    assert named_checkpoint(str(run / "checkpoint_1")) == run / "checkpoint_1"
    for missing in (str(tmp_path / "none"), str(run / "checkpoint_1" / "x.pth")):
        with pytest.raises(ConfigError) as caught:
            named_checkpoint(missing)
        assert caught.value.exit_code == 3
    with pytest.raises(ConfigError):
        read_checkpoint(str(tmp_path / "none"), "model.finetuned")


RUN = """
model: {arch: blip2_opt, model_type: tiny}
datasets:
  coco_caption:
    vis_processor: {train: {name: blip2_image_train, image_size: 64}}
  vg_caption:
    vis_processor: {train: {name: blip2_image_train, image_size: 64}}
run: {task: image_text_pretrain, max_epoch: 1, train_splits: [train]}
"""


def run_file(tmp_path: Path, text: str = RUN) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_an_option_takes_a_data_set_out(tmp_path: Path) -> None:
    assert set(load_checked(run_file(tmp_path), ["datasets.vg_caption=null"]).datasets) == {"coco_caption"}
    ratios = RUN.replace("train_splits", "train_dataset_ratios: {coco_caption: 1, vg_caption: 2}, train_splits")
    path = run_file(tmp_path, ratios)
    assert set(load_checked(path, ["datasets.vg_caption=null"]).datasets) == {"coco_caption"}


def test_a_folder_of_the_file_that_is_not_there_is_told_by_its_line(tmp_path: Path) -> None:
    text = RUN.replace("  vg_caption:", "    build_info: {images: {storage: /export/share/coco/}}\n  vg_caption:")
    path = run_file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        open_datasets(load_config(path, ["datasets.vg_caption=null"]), ["train"])
    assert f"{path}:6 datasets.coco_caption.build_info.images.storage: /export/share/coco: no such" in str(caught.value)
    assert caught.value.exit_code == 3


def test_sizes_that_differ_are_told_by_their_line(tmp_path: Path) -> None:
    config = load_config(run_file(tmp_path, RUN.replace("64}}\n  vg", "224}}\n  vg")))
    with pytest.raises(ConfigError, match=r"run\.yaml:5 datasets\.coco_caption\.vis_processor\.train\.image_size"):
        require_sizes(config)
    require_sizes(load_config(run_file(tmp_path)))


@pytest.mark.parametrize(
    ("old", "new", "line", "whose"),
    [
        ("blip2_opt", "blip_vqa", 2, "architecture 'blip_vqa' is LAVIS' BLIP"),
        ("blip2_opt", "albef_retrieval", 2, "LAVIS' ALBEF"),
        ("vg_caption", "msrvtt_caption", 6, "LAVIS' data set of videos"),
        ("vg_caption", "audiocaps_mm_caption", 6, "LAVIS' data set of sound"),
        ("vg_caption", "modelnet40_cls", 6, "LAVIS' data set of point clouds"),
        ("image_text_pretrain", "dialogue", 8, "LAVIS' task of dialogues"),
        ("name: blip2_image_train", "name: alpro_video_train", 5, "LAVIS' processor of videos"),
    ],
)
def test_what_is_not_served_is_the_first_and_only_cause(
    tmp_path: Path, old: str, new: str, line: int, whose: str
) -> None:
    more = "model: {vit_type: base, queue_size: 9, med_config_path: x, "
    path = run_file(tmp_path, RUN.replace(old, new, 1).replace("model: {", more if "arch" in whose else "model: {"))
    found = [str(problem) for problem in check_file(path)]
    assert len(found) == 1
    assert found[0].startswith(f"{path}:{line} ")
    assert whose in found[0] and "not served here" in found[0] and "did you mean" not in found[0]


def test_a_name_of_ones_own_is_not_lavis() -> None:
    for kind, name in (("model", "blip_mine"), ("dataset", "coin_pictures"), ("processor", "gpt_texts"), ("task", "x")):
        assert out_of_scope(kind, name) == ""


LAVIS_MODEL = """
model:
  arch: {arch}
  load_finetuned: False
  pretrained: "{url}"
  finetuned: ""
  image_size: 224
  vit_precision: "fp16"
  freeze_vit: True
  num_query_token: 32
  {language}
preprocess:
  vis_processor:
    train: {{name: blip_image_train, image_size: 224}}
    eval: {{name: blip_image_eval, image_size: 224}}
"""


@pytest.mark.parametrize(
    ("name", "arch", "language"),
    [
        ("blip2_pretrain", "pretrain", ""),
        ("blip2_pretrain_opt9b", "pretrain_opt9b", "opt_model: facebook/opt-9b"),
        ("blip2_pretrain_flant5xl", "pretrain_flant5xl", "t5_model: google/flan-t5-xl"),
        ("blip2_pretrain_llama7b", "pretrain_opt6.7b", "opt_model: /storage/llama"),
        ("blip2_pretrain_vicuna7b", "pretrain_llama7b", "llama_model: /storage/vicuna"),
    ],
)
def test_model_files_of_lavis_pass(name: str, arch: str, language: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.yaml"
    path.write_text(LAVIS_MODEL.format(arch=arch, url=STAGE1, language=language))
    assert check_file(path) == []
    path.write_text(path.read_text().replace("num_query_token", "num_query_tokens"))
    assert [problem.where for problem in check_file(path)] != []


def test_a_text_is_a_batch_of_one() -> None:
    image = small_batch(1)["image"]
    for arch in ("blip2_opt", "blip2_t5", "blip2_llama"):
        model = small_of(arch)
        one, row = ({"image": image, "text_input": text} for text in ("a red circle", ["a red circle"]))
        assert model(one)["loss"].item() == model(row)["loss"].item()
        assert model.predict_answers(one, max_len=4) == model.predict_answers(row, max_len=4)
    stage = small_stage1()
    assert stage.extract_features({"text_input": "a red circle"}, "text").text_embeds.shape[0] == 1
    with pytest.raises(ConfigError, match="1 texts for 3 images"):
        small_of("blip2_opt")({"image": small_batch()["image"], "text_input": "abc"})
