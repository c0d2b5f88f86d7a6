"""The commands of Oscar's and VinVL's model zoos, pasted as they stand: carried over, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.config.check import check_file
from lavis_ext.common.config.resolve import load_config
from lavis_ext.common.errors import UsageError
from lavis_ext.oscar.import_args import import_command

HERE = Path(__file__).parent / "documents"
OSCAR, VINVL = ((HERE / f"{name}.txt").read_text(encoding="utf-8").split("\n\n") for name in ("oscar", "vinvl"))
REFUSED = {18: ["run_vcr.py"], 19: ["--output_dir", "--data_dir"]}
"""VCR has no data set here; of pre-training two values are for the reader to fill in."""
START = "run_vqa.py --do_train --model_name_or_path m"
RETRIEVAL = "run_retrieval.py --do_train --add_od_labels --model_name_or_path m"
FEATURES = "vinvl/image_features/coco/model_0060000/features.tsv"


def run_of(text: str, tmp_path: Path) -> Any:
    (tmp_path / "run.yaml").write_text(import_command([text]).text, encoding="utf-8")
    assert check_file(tmp_path / "run.yaml") == []
    return load_config(tmp_path / "run.yaml")


def places(text: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        import_command([text])
    assert caught.value.exit_code == 2
    return [problem.where for problem in caught.value.problems]


def test_there_are_fifteen_and_twenty() -> None:
    assert (len(OSCAR), len(VINVL)) == (15, 20)


@pytest.mark.parametrize("number", range(15))
def test_oscar_s_commands_are_carried_over(number: int, tmp_path: Path) -> None:
    text = OSCAR[number]
    config = run_of(text, tmp_path)
    assert [data.type for data in config.datasets.values()] == ["default"]
    plain = " ".join(text.split("#")[0].replace("\\\n", " ").split())
    assert import_command([text]).tree == import_command([plain]).tree


@pytest.mark.parametrize("number", range(20))
def test_vinvl_s_commands_are_carried_over_or_refused(number: int, tmp_path: Path) -> None:
    if number in REFUSED:
        assert [where.rpartition("/")[2].split()[-1] for where in places(VINVL[number])] == REFUSED[number]
        return
    config = run_of(VINVL[number], tmp_path)
    types = [data.type for data in config.datasets.values()]
    assert types == (["vinvl"] if "vinvl/" in VINVL[number] or "image_captioning" in VINVL[number] else ["default"])
    assert config.model.pretrained.split("/")[0] in {"vinvl", "oscar", "your_model_for_evaluation"} or number in (
        *(11, 13, 15, 16),  # a run of one's own, and a plain BERT
    )


def test_a_flag_and_its_value_on_two_lines(tmp_path: Path) -> None:
    args = run_of(OSCAR[0], tmp_path).datasets["oscar_vqa"].args
    assert (args["max_img_seq_length"], args["max_seq_length"]) == (50, 128)
    assert run_of(OSCAR[0], tmp_path).model.drop_out == 0.3


@pytest.mark.parametrize("margin", ["", "  "])
def test_a_line_after_the_command_is_none_of_it(margin: str) -> None:
    text = f"{margin}python {START} --seed\n{margin}7\n{margin}echo done\n\n{margin}echo --seed 9"
    with pytest.raises(UsageError) as caught:
        import_command([f"{text}\npython {START}"])
    assert "2 commands" in str(caught.value)
    assert import_command([text]).tree["run"]["seed"] == 7


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("pretrained_models/image_captioning/pretrained_base", "vinvl/model_ckpts/image_captioning/pretrained_base"),
        ("vinvl/coco_ir/base/checkpoint-1340000", "vinvl/model_ckpts/coco_ir/base/checkpoint-1340000"),
        ("vinvl/coco_ir/base/checkpoint-0660000", "vinvl/model_ckpts/coco_ir/large/checkpoint-0660000"),
        ("pretrained_models/base-vg-labels/ep_55_1617000", "oscar/pretrained_models/large-vg-labels/ep_55_1617000"),
        ("model_ckpts/vqa/base/best", "vinvl/model_ckpts/vqa/base/best"),
        ("vinvl/model_ckpts/vqa/base/checkpoint-2000000", "vinvl/model_ckpts/vqa/base/checkpoint-2000000"),
        ("pretrained_models/base-vg-labels/ep_1_2", "oscar/pretrained_models/base-vg-labels/ep_1_2"),
        ("my/vinvl/coco_ir", "my/vinvl/coco_ir"),
    ],
)
def test_models_lie_where_prepare_puts_them(given: str, path: str) -> None:
    found = import_command([f"run_vqa.py --do_train --model_name_or_path {given}"])
    assert found.tree["model"]["pretrained"] == path
    assert found.tree["model"]["model_type"] == ("large" if "large" in path else "base")
    assert ("the document says" in found.text) == ("large" in path)  # and nobody is left to wonder


def test_retrieval_with_vinvl_s_features_has_vinvl_s_tags() -> None:
    data = import_command([f"{RETRIEVAL} --img_feat_file {FEATURES}"]).tree["datasets"]["oscar_coco_ir"]
    assert (data["type"], data["args"]["features"]) == ("vinvl", FEATURES)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (f"{RETRIEVAL} --data_dir datasets/coco_ir --img_feat_file {FEATURES}", ["--img_feat_file"]),
        (f"{START} --data_dir vinvl/datasets/vqa --txt_data_dir datasets/vqa/2k", ["--txt_data_dir"]),
        (f"{START} --data_dir /a/datasets/vqa/2k --txt_data_dir /b/datasets/vqa/2k", ["--txt_data_dir"]),
        (f"{RETRIEVAL} --att_mask_type CL", ["--att_mask_type"]),
        (f"{START} --do_train_val", ["--do_train_val"]),
        ("run_gqa.py --do_train_val --model_name_or_path m", ["--do_train_val"]),
        (f"{START} --img_feat_format tsv", ["--img_feat_dir"]),
        ("run_vqa_with_pkd.py --do_train --student_model m --teacher_model t --alpha 0", ["--alpha"]),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, flags: list[str]) -> None:
    assert [where.split()[-1] for where in places(text)] == flags


def test_check_refuses_a_mask_that_no_builder_makes(tmp_path: Path) -> None:
    text = import_command([RETRIEVAL]).text.replace("    args:\n", "    args:\n      att_mask_type: CL\n")
    (tmp_path / "run.yaml").write_text(text)
    assert [problem.where.split()[-1] for problem in check_file(tmp_path / "run.yaml")]
    assert "att_mask_type" in str(check_file(tmp_path / "run.yaml")[0])


@pytest.mark.parametrize(("form", "folder"), [("", "vqa!vqa/2k/"), ("vinvl", "vinvl/vqa!")])
def test_train_and_val_are_upstream_s_own_merged_file(form: str, folder: str) -> None:
    data_dir = "--data_dir vinvl/datasets/vqa" if form else ""
    tree = import_command([f"run_vqa.py --do_train_val --model_name_or_path m {data_dir}"]).tree
    build = tree["datasets"]["oscar_vqa"]["build_info"]
    assert tree["run"]["train_splits"] == ["train"]
    assert build["annotations"]["train"]["artifact"] == [f"{folder}train+val2014_qla_mrcnn.json"]
    assert build["features"]["artifacts"]["train"] == [f"{folder}{one}_img_frcnn_feats.pt" for one in ("train", "val")]


def test_features_of_vqa_as_tsv() -> None:
    found = import_command([f"{START} --img_feat_format tsv --img_feat_dir /data/tsv"]).tree
    files = found["datasets"]["oscar_vqa"]["args"]["features"]
    assert (files["train"], files["test"]) == (
        "/data/tsv/train_img_frcnn_feats.tsv",
        "/data/tsv/test2015_img_frcnn_feats.tsv",
    )


@pytest.mark.parametrize(
    ("ending", "more", "terms"),
    [
        ("pkd", "", [{"name": "soft_ce", "weight": 25.0}, {"name": "pkd", "weight": 1000.0}]),
        ("tinybert", "--beta 0.1 --alpha 0.2", [{"name": "soft_ce", "weight": 1}, {"name": "tinybert", "weight": 0.5}]),
    ],
)
@pytest.mark.parametrize("script", ["vqa", "gqa", "nlvr", "retrieval"])
def test_the_scripts_of_layers(script: str, ending: str, more: str, terms: list[Any], tmp_path: Path) -> None:
    pair = "--use_pair" if script == "nlvr" else ""
    text = f"run_{script}_with_{ending}.py --do_train --student_model m --teacher_model t {pair} {more}"
    assert import_command([text]).tree["run"]["distill"]["terms"] == terms
    run_of(text, tmp_path)


def test_pre_training_with_its_values_filled_in(tmp_path: Path) -> None:
    text = VINVL[19].replace("<your output folder>", "out/plus")
    text = text.replace("<The input data dir that contain the .yaml files>", "vinvl/pretrain_corpus")
    config, ours = run_of(text, tmp_path), load_config("configs/projects/oscar/pretrain/oscar_plus.yaml")
    for key in (
        *("runner", "task", "train_splits", "lr_sched", "init_lr", "warmup_lr", "warmup_steps", "weight_decay"),
        *(
            "clip_grad_norm",
            "max_iters",
            "iters_per_inner_epoch",
            "batch_size_train",
            "num_workers",
            "log_freq",
            "seed",
        ),
    ):
        if key != "lr_sched":
            assert getattr(config.run, key) == getattr(ours.run, key), key
    for key in ("pretrained", "head", "num_contrast_classes", "use_img_layernorm", "drop_out"):
        assert getattr(config.model, key) == getattr(ours.model, key), key
    (mine,), (known,) = config.datasets.values(), ours.datasets.values()
    assert (mine.name, mine.type) == (known.name, known.type)
    assert {key: mine.args[key] for key in known.args} == known.args
    two = text.rstrip() + " --extra_dataset_file googlecc_sbu_oi_x152c4big2exp168.yaml --extra_textb_sample_mode 1"
    assert [one.split()[-1] for one in places(f"{two} --extra_loss_weight 0.5")] == [
        "--extra_dataset_file",
        "--extra_loss_weight",
    ]
