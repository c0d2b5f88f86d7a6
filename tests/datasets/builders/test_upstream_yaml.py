"""YAML of LAVIS and VPGTrans, as it is shipped there, builds here: url and storage lists, folders of the user."""

import json
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.config.cards import load_cards, load_dataset_config
from lavis_ext.common.config.resolve import load_config
from lavis_ext.datasets.builders import BuildContext, build_datasets
from tests.support.families import FORMS, minigpt4, vg
from tests.support.pictures import write_json

HOST = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/datasets"
UPSTREAM: dict[str, dict[str, Any]] = {
    "gqa": {
        "train": ("gqa/train_balanced_questions.json", "gqa/annotations/train_balanced_questions.json"),
        "val": ("gqa/testdev_balanced_questions.json", "gqa/annotations/testdev_balanced_questions.json"),
    },
    "vg_caption": {"train": ("visual_genome/vg_caption.json", "vg/annotations/vg_caption.json")},
    "vg_vqa": {"train": ("visual_genome/vg_qa.json", "vg/annotations/vg_qa.json")},
    "sbu_caption": {"train": ("sbu/sbu.json", "sbu_captions/annotations/sbu.json")},
    "flickr30k": {"val": ("flickr30k_val.json", "flickr30k/annotations/val.json")},
    "nlvr": {"train": ("nlvr/nlvr_train.json", "nlvr/annotations/train.json")},
}
LAVIS_FORM = {"gqa": 1}
STEP3 = """
model: {arch: blip2_opt, model_type: tiny}
datasets:
  minigpt4_self_instruct_caption:
    data_type: images
    build_info:
      storage: %s
    vis_processor: {train: {name: blip2_image_train, image_size: 32}}
    text_processor: {train: {name: blip_caption}}
run: {task: image_text_pretrain, max_epoch: 1, train_splits: [train]}
"""


@pytest.mark.parametrize("name", UPSTREAM)
def test_url_and_storage_of_upstream(name: str, tmp_path: Path) -> None:
    FORMS[name][LAVIS_FORM.get(name, 0)](tmp_path / "data")
    files = {split: {"url": [f"{HOST}/{u}"], "storage": [s]} for split, (u, s) in UPSTREAM[name].items()}
    images = load_cards().dataset(name).build_info.images.storage
    body = {"data_type": "images", "build_info": {"annotations": files, "images": {"storage": f"{images}/"}}}
    path = write_json(tmp_path / "defaults.yaml", {"datasets": {name: body}})
    config = load_dataset_config(path)
    built = build_datasets(config, BuildContext(tmp_path / "data", list(files)))
    assert {split: len(dataset) for split, dataset in built.items()} == dict.fromkeys(files, 3)
    for dataset in built.values():
        assert "instance_id" in dataset[0] or "index" in dataset[0]


def test_vpgtrans_step_three_names_a_folder(tmp_path: Path) -> None:
    """`build_info.storage` is the folder of the authors' archive, wherever it lies; captions stay as they are."""
    minigpt4(tmp_path / "elsewhere")
    path = tmp_path / "run.yaml"
    path.write_text(STEP3 % (tmp_path / "elsewhere/cc_sbu_align"))
    config = load_config(path).datasets["minigpt4_self_instruct_caption"]
    train = build_datasets(config, BuildContext(tmp_path / "empty"))["train"]
    sample = train[0]
    assert sample["text_input"] == "The image shows a thing. It is: 2!"
    assert sample["image"].shape == (3, 32, 32)


def test_run_file_needs_no_family(tmp_path: Path) -> None:
    """A run's YAML names a data set only: its card is found by the name."""
    vg(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(
        json.dumps(
            {
                "model": {"arch": "blip2_opt", "model_type": "tiny"},
                "datasets": {"vg_vqa": {}},
                "run": {"task": "image_text_pretrain", "max_epoch": 1},
            }
        )
    )
    config = load_config(path).datasets["vg_vqa"]
    assert len(build_datasets(config, BuildContext(tmp_path))["train"]) == 3
