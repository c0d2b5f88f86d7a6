"""Precedence, default YAMLs chosen by the merged values, old keys, and every mistake with its place."""

import logging
import pickle
from pathlib import Path

import pytest

from lavis_ext.common.config.resolve import (
    cache_root,
    cache_root_origin,
    find_config,
    load_config,
    model_defaults,
    parse_options,
)
from lavis_ext.common.errors import ConfigError, UsageError
from lavis_ext.tasks.settings import CaptioningConfig, PretrainConfig

RUN = """
model: {arch: blip2_opt, model_type: tiny}
datasets:
  coco_caption:
    vis_processor: {train: {name: blip2_image_train, image_size: 96}}
run: {task: captioning, max_epoch: 1, train_splits: [train], valid_splits: [val], init_lr: 1e-3}
"""


def run_file(tmp_path: Path, text: str = RUN) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_default_yaml_below_user_yaml_below_options(tmp_path: Path) -> None:
    config = load_config(run_file(tmp_path), ["run.init_lr=5e-4", "run.batch_size_train=7", "run.valid_splits=[test]"])
    caption = config.datasets["coco_caption"]
    assert caption.builder == "image_caption"  # default YAML
    assert caption.vis_processor.train is not None
    assert caption.vis_processor.train.args == {"image_size": 96}  # user YAML
    assert (config.run.init_lr, config.run.batch_size_train) == (5e-4, 7)  # options
    assert config.run.valid_splits == ["test"]  # lists are replaced, not merged
    assert config.resolved["run"]["init_lr"] == 5e-4


def test_lavis_alternating_options() -> None:
    assert parse_options(["run.seed", "1", "run.amp", "True"]) == {"run": {"seed": 1, "amp": True}}


@pytest.mark.parametrize("options", [["run.seed=1", "oops"], ["run.seed", "1", "alone"], ["=3", "a=1"]])
def test_options_that_are_not_key_value(options: list[str]) -> None:
    with pytest.raises(UsageError, match="key=value"):
        parse_options(options)


def write_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "mine"
    (root / "models" / "blip2_opt").mkdir(parents=True)
    (root / "datasets" / "words").mkdir(parents=True)
    big = "model: {arch: blip2_opt, model_type: big, num_query_token: 7}\n"
    (root / "models" / "blip2_opt" / "big.yaml").write_text(big)
    both = "datasets:\n  words:\n    type: {}\n    builder: image_caption\n    dataset_card: the {} one\n"
    (root / "datasets" / "words" / "a.yaml").write_text(both.format("default", "first"))
    (root / "datasets" / "words" / "b.yaml").write_text(both.format("eval", "second"))
    monkeypatch.setenv("LAVIS_EXT_CONFIGS", str(root))


def test_options_choose_the_default_yaml_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_configs(tmp_path, monkeypatch)
    path = run_file(tmp_path, RUN.replace("coco_caption:", "words: {}\n  coco_caption:"))
    config = load_config(path, ["model.model_type=big", "datasets.words.type=eval"])
    assert config.model is not None
    assert config.model.num_query_token == 7
    assert config.datasets["words"].dataset_card == "the second one"
    assert load_config(path).datasets["words"].dataset_card == "the first one"


@pytest.mark.fault("D03")
def test_every_mistake_at_once_with_its_place(tmp_path: Path) -> None:
    text = RUN.replace("max_epoch: 1", "max_epoch: one, bacth_size_train: 3").replace(
        "coco_caption:", "coco_captoin: {}\n  coco_caption:"
    )
    path = run_file(tmp_path, text + "runn: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["run.seed=x"])
    lines = str(caught.value).splitlines()
    wanted = f"{path}:4 datasets.coco_captoin: no card declares it; did you mean 'coco_caption'"
    assert any(line.startswith(wanted) for line in lines)
    assert any(
        line.startswith(f"{path}:7 run.bacth_size_train: unknown key; did you mean 'batch_size_train'")
        for line in lines
    )
    assert f"{path}:7 run.max_epoch: 'one' is not a whole number; write for example 2" in lines
    assert "--options run.seed: 'x' is not a whole number; write for example 2" in lines
    assert f"{path}:8 runn: unknown section; did you mean 'run'?" in lines


@pytest.mark.fault("D04")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model_type: tiny", "model_type: tinny", "has no type 'tinny'; did you mean 'tiny'"),
        ("arch: blip2_opt", "arch: blip2_otp", "no architecture 'blip2_otp'; did you mean 'blip2_opt'"),
        ("coco_caption:", "coco_caption:\n    type: evla", "has no type 'evla'"),
    ],
)
def test_unknown_defaults_say_the_nearest(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(run_file(tmp_path, RUN.replace(old, new)))


VPGTRANS = """
model:
  arch: blip2_opt
  model_type: tiny
  load_pretrained: False
  pretrained: ""
  freeze_vit: True
datasets:
  coco_caption:
    vis_processor: {train: {name: "blip2_image_train", image_size: 224}}
    text_processor: {train: {name: "blip_caption"}}
run:
  runner: runner_iter
  task: image_text_pretrain
  lr_sched: "linear_warmup_cosine_lr"
  init_lr: 1e-4
  min_lr: 1e-5
  warmup_lr: 1e-6
  weight_decay: 0.05
  max_iters: 80
  iters_per_inner_epoch: 20
  batch_size_train: 16
  batch_size_eval: 8
  num_workers: 4
  warmup_steps: 10
  accum_grad_iters: 1
  num_beams: 5
  max_len: 30
  min_len: 8
  seed: 42
  output_dir: "output/BLIP2/Pretrain_stage2"
  amp: True
  resume_ckpt_path: null
  evaluate: False
  train_splits: ["train"]
  device: "cuda"
  world_size: 1
  dist_url: "env://"
  distributed: True
  train_dataset_ratios:
    coco_caption: 0.3
"""


def test_old_run_yaml_loads_unchanged_with_one_notice_a_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config = load_config(run_file(tmp_path, VPGTRANS))
    assert config.datasets["coco_caption"].weight == 0.3
    assert (config.run.max_iters, config.run.device) == (80, "cuda")
    assert config.model is not None
    assert config.model.pretrained is None
    notices = [record.getMessage() for record in caplog.records]
    for key in ("world_size", "dist_url", "distributed", "train_dataset_ratios"):
        assert sum(key in notice for notice in notices) == 1


def test_cache_root_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAVIS_EXT_CACHE_ROOT", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert cache_root_origin()[1].endswith("default.yaml")
    (tmp_path / "lavis_ext").mkdir()
    (tmp_path / "lavis_ext" / "config.yaml").write_text(f"env: {{cache_root: {tmp_path}/user}}\n")
    assert cache_root() == tmp_path / "user"
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", f"{tmp_path}/environment")
    assert cache_root() == tmp_path / "environment"
    assert cache_root(tmp_path / "option") == tmp_path / "option"
    assert load_config(run_file(tmp_path), [f"env.cache_root={tmp_path}/o"]).cache_root == f"{tmp_path}/o"


def test_user_settings_take_only_known_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAVIS_EXT_CACHE_ROOT", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "lavis_ext").mkdir()
    (tmp_path / "lavis_ext" / "config.yaml").write_text("env: {cache_rot: /x}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml:1: `env` takes only `cache_root`"):
        cache_root()


def test_run_files_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/projects/demo/train/caption.yaml").is_file()
    assert find_config("projects/demo/train/caption.yaml").is_file()
    with pytest.raises(UsageError, match=r"did you mean 'configs/projects/demo/train/caption\.yaml'"):
        find_config("configs/projects/demo/train/captoin.yaml")
    named = "projects/blip2/train/pretrain_stage1.yaml"
    shipped = find_config(f"configs/{named}")
    assert find_config(f"lavis/{named}") == find_config(f"lavis_ext/{named}") == shipped
    theirs = tmp_path / "lavis" / named
    theirs.parent.mkdir(parents=True)
    theirs.write_text("run: {task: captioning}\n")
    assert find_config(f"lavis_ext/{named}").absolute() == find_config(f"lavis/{named}").absolute() == theirs


def test_model_defaults_are_the_shipped_yaml() -> None:
    model, preprocess = model_defaults("blip2_opt", "tiny")
    assert model["arch"] == "blip2_opt"
    assert {"vis_processor", "text_processor"} <= set(preprocess)


def test_a_section_of_two_tasks_has_the_keys_of_both_and_is_picklable(tmp_path: Path) -> None:
    text = RUN.replace("task: captioning", "task: image_text_pretrain, eval_task: captioning, repetition_penalty: 1.5")
    run = load_config(run_file(tmp_path, text)).run
    assert isinstance(run, PretrainConfig) and isinstance(run, CaptioningConfig)
    assert (run.eval_task, run.repetition_penalty) == ("captioning", 1.5)
    copied = pickle.loads(pickle.dumps(run))
    assert copied == run and type(copied) is type(run)


CAPTIONS = "num_beams: 5, max_len: 30, min_len: 8, report_metric: True"
ANSWERS = "num_beams: 3, max_len: 10, min_len: 1, inference_method: rank, num_ans_candidates: 128, prompt: ''"
CONSTANT = "lr_sched: constant_lr, lr_layer_decay: 1, save_freq: -1, val_freq: 1, save_last: True, warmup_lr: -1"


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        ("captioning", f"{CAPTIONS}, repetition_penalty: 1.15, length_penalty: 0., top_p: 0.9, temperature: 1."),
        (
            "captioning",
            "annotation_file: null, sample_id_key: image_id, caption_key: text, load_gt_from_file: False",
        ),
        ("nocaps", f"{CAPTIONS}, img_ids: []"),
        ("vqa", f"{ANSWERS}, sample_id_key: question_id, ques_files: {{}}, anno_files: {{}}"),
        ("gqa", ANSWERS),
        ("aok_vqa", ANSWERS),
        ("retrieval", "k_test: 128, use_dist_eval_sampler: False, max_len: 30, min_len: 8, num_beams: 5"),
        ("multimodal_classification", CONSTANT),
        ("image_text_pretrain", "num_beams: 5, max_len: 30, min_len: 8, iters_per_epoch: 5000"),
        ("image_text_pretrain", f"eval_task: captioning, {CAPTIONS}, top_p: 0.9"),
    ],
)
def test_every_key_of_the_published_run_files_is_accepted(tmp_path: Path, task: str, keys: str) -> None:
    text = RUN.replace("task: captioning", f"task: {task}, {keys}, world_size: 1, dist_url: env://, distributed: True")
    assert load_config(run_file(tmp_path, text)).run.task == task
