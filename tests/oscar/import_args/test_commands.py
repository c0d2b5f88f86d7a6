"""The published commands become run files that pass `check`, with the values that the commands give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lavis_ext.common.config.check import check_file
from lavis_ext.common.config.resolve import load_config
from lavis_ext.common.config.schema import Config, ModelConfig
from lavis_ext.oscar.import_args import import_command
from tests.support.oscar_commands import COMMANDS, written

TASKS = {"vqa": "oscar_vqa", "gqa": "oscar_gqa", "nlvr": "oscar_nlvr2", "ir": "oscar_retrieval"}
OURS = {"vqa": "vqa", "gqa": "gqa", "nlvr": "nlvr2", "ir": "coco_ir"}
PROJECTS = Path(__file__).parents[3] / "configs" / "projects" / "oscar"


def made(name: str, tmp_path: Path) -> Config:
    path = tmp_path / "run.yaml"
    path.write_text(import_command([written(name)]).text, encoding="utf-8")
    assert check_file(path) == []
    return load_config(path)


def model_of(config: Config) -> ModelConfig:
    assert config.model is not None
    return config.model


@pytest.mark.parametrize("name", COMMANDS)
def test_a_published_command_passes_check(name: str, tmp_path: Path) -> None:
    config = made(name, tmp_path)
    assert config.run.evaluate == name.endswith(("_test", "_1k", "_5k"))
    assert yaml.safe_load((tmp_path / "run.yaml").read_text()) == import_command([written(name)]).tree


@pytest.mark.parametrize("name", ["vqa", "gqa", "nlvr", "ir"])
@pytest.mark.parametrize("folder", ["finetune", "distill"])
def test_it_says_what_our_own_run_file_says(name: str, folder: str, tmp_path: Path) -> None:
    mine = made(name if folder == "finetune" else f"{name}_taught", tmp_path)
    ours = load_config(PROJECTS / folder / f"{OURS[name]}.yaml")
    for key in (
        *("init_lr", "max_epoch", "batch_size_train", "batch_size_eval", "warmup_steps", "warmup_lr", "weight_decay"),
        *("clip_grad_norm", "lr_sched", "seed", "train_splits", "valid_splits", "save_steps"),
    ):
        assert getattr(mine.run, key) == getattr(ours.run, key), key
    for key in ("pretrained", "head", "loss_type", "classifier", "drop_out", "num_hidden_layers", "model_type"):
        assert getattr(model_of(mine), key) == getattr(model_of(ours), key), key
    (data,), (known,) = mine.datasets.values(), ours.datasets.values()
    assert data.name == known.name
    for key in ("max_seq_length", "max_img_seq_length", "data_label_type", "train_data_type", "label_file"):
        assert data.args.get(key) == known.args.get(key), key
    if folder == "finetune":
        assert mine.run.task == TASKS[name]
        return
    taught, wanted = mine.run.distill, ours.run.distill
    assert taught is not None
    assert wanted is not None
    for key in ("task", "alpha", "temperature", "strategy", "terms", "kd_weights"):
        assert getattr(taught, key) == getattr(wanted, key), key
    assert (taught.teacher_lr, taught.teacher_update) == (mine.run.init_lr, "none")
    assert isinstance(taught.teacher, str)
    assert taught.teacher.endswith("/teacher")


def test_a_test_takes_the_weights_that_upstream_loads(tmp_path: Path) -> None:
    config = made("vqa_test", tmp_path)
    assert model_of(config).pretrained == "model/vqa/student"
    assert (config.run.test_splits, config.run.train_splits) == (["test"], [])
    other = written("vqa_test").replace("--output_dir model/vqa/student", "--output_dir model/vqa/elsewhere")
    found = import_command([other])
    assert found.tree["model"]["pretrained"] == "model/vqa/elsewhere"
    assert ("model_name_or_path", "upstream takes the weights of --output_dir") in found.notes


def test_labels_are_found_below_the_cache_root(tmp_path: Path) -> None:
    args = made("gqa_test", tmp_path).datasets["oscar_gqa"].args
    assert args["label_file"] == "oscar/datasets/GQA/0.4true/trainval_testdev_all_ans2label.pkl"


def test_retrieval_of_1k_and_5k(tmp_path: Path) -> None:
    for name, file in (("ir_1k", "test_img_keys_1k.tsv"), ("ir_5k", "test_img_keys.tsv")):
        config = made(name, tmp_path)
        args = config.datasets["oscar_coco_ir"].args
        assert (args["eval_img_keys_file"], args["num_captions_per_img_val"]) == (file, 5)
        assert model_of(config).pretrained == "model/coco_ir/student"
        text = import_command([written(name)]).text
        assert "--cross_image_eval: without args.eval_caption_index_file" in text
        assert "training_args.bin" in text  # what upstream takes from a pickle


def test_candidates_of_validation_are_no_captions_of_an_image(tmp_path: Path) -> None:
    args = made("ir", tmp_path).datasets["oscar_coco_ir"].args
    assert args["eval_caption_index_file"] == "minival_caption_indexs_top20.pt"
    assert args.get("num_captions_per_img_val", 5) == 5


def test_captions(tmp_path: Path) -> None:
    config = made("caption", tmp_path)
    assert (model_of(config).head, model_of(config).tie_weights, config.run.init_lr) == ("caption", False, 3e-5)
    assert made("caption_scst", tmp_path).run.scst
    tested = made("caption_test", tmp_path)
    assert (tested.run.num_beams, tested.run.max_len, tested.run.test_splits) == (5, 20, ["test"])
    nocaps = "run_captioning.py --do_test --data_dir datasets/nocaps --test_yaml val.yaml --eval_model_dir m --use_cbs"
    found = import_command([nocaps]).tree
    assert (list(found["datasets"]), found["run"]["test_splits"]) == (["oscar_nocaps"], ["val"])
    assert found["run"]["use_cbs"] is True


def tree_of(*more: str, script: str = "run_vqa") -> Any:
    base = f"{script}.py --do_train --model_name_or_path pretrained_models/base-vg-labels/ep_107_1192087"
    return import_command([" ".join([base, *more])]).tree


def test_defaults_are_upstream_s() -> None:
    run, args = tree_of()["run"], tree_of()["datasets"]["oscar_vqa"]["args"]
    assert (run["init_lr"], run["max_epoch"], run["batch_size_train"], run["seed"]) == (5e-5, 3, 8, 42)
    assert (args["max_img_seq_length"], args["max_seq_length"], args["do_lower_case"]) == (30, 128, False)
    assert tree_of()["model"]["loss_type"] == "bce"
    assert tree_of(script="run_gqa")["model"]["loss_type"] == "ce"
    retrieval = tree_of(script="run_retrieval")
    assert (retrieval["run"]["init_lr"], retrieval["run"]["max_epoch"], retrieval["run"]["seed"]) == (2e-5, 20, 88)
    assert retrieval["datasets"]["oscar_coco_ir"]["args"]["add_od_labels"] is False
    assert retrieval["run"]["valid_splits"] == []


def test_steps_are_counted_in_micro_batches() -> None:
    run = tree_of("--max_steps 100 --gradient_accumulation_steps 4 --warmup_steps 10 --scheduler constant")["run"]
    assert (run["max_iters"], run["accum_grad_iters"], run["warmup_steps"]) == (400, 4, 40)
    assert (run["lr_sched"], run["lr_granularity"]) == ("constant_lr", "iter")
    assert "max_epoch" not in run


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ("--do_test --do_test_dev", "test_splits", ["test_dev", "test"]),
        ("--optim Adamax", "optimizer", "adamax"),
        ("--fp16", "precision", "fp16"),
        ("--no_cuda", "device", "cpu"),
        ("-j 4", "num_workers", 4),
        ("-j8", "num_workers", 8),
        ("--save_steps -1", "save_steps", None),
        ("--logging_steps=4000", "log_freq", 4000),
        ("--adam_epsilon 1e-6", "adam_epsilon", 1e-6),
    ],
)
def test_single_flags_of_the_run(given: str, key: str, value: Any) -> None:
    assert tree_of(given)["run"].get(key) == value


def test_data_elsewhere_and_larger_models() -> None:
    tree = tree_of("--data_dir /data/Oscar/datasets/vqa/2k")
    assert tree["datasets"]["oscar_vqa"]["build_info"]["storage"] == "/data/Oscar"
    large = import_command(
        ["run_vqa.py --do_train --model_name_or_path pretrained_models/large-vg-labels/ep_20_590000"]
    )
    assert large.tree["model"]["model_type"] == "large"


def test_the_baseline_of_plain_logits() -> None:
    text = written("vqa_taught").replace("with_mkd_and_reptile", "with_vanilla_kd")
    assert import_command([text]).tree["run"]["distill"]["terms"] == ["vanilla_kd"]
