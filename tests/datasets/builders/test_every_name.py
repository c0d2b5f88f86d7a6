"""Every data set that a card declares is built from little files in each published form, and gives LAVIS' samples."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_ext.common.config.cards import load_cards, split_names
from lavis_ext.common.config.schema import DatasetConfig
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.datasets.mixture import Mixture
from tests.support.families import FORMS, INSTRUCTED, Write

CAPTION = {"image": Tensor, "text_input": str, "image_id": int, "instance_id": str}
EVAL_CAPTION = {"image": Tensor, "image_id": (int, str), "instance_id": str}  # LAVIS: text of COCO, a number of NoCaps
VQA = {"image": Tensor, "text_input": str, "answers": list, "weights": list, "question_id": int, "instance_id": str}
EVAL_VQA = {"image": Tensor, "text_input": str, "question_id": int, "instance_id": str}
KNOWLEDGE = {"choices": list, "correct_choice_idx": (int, type(None)), "direct_answers": (list, type(None))}
PAIR = {"image0": Tensor, "image1": Tensor, "text_input": str, "label": int, "instance_id": str}
LABEL = {"image": Tensor, "text_input": str, "label": int, "image_id": str, "instance_id": str}
TEXT_ID = {"question_id": str}
CONVERSATION = {"image": list, "conversations": list, "sample_id": str, "instance_id": str}

KEYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **dict.fromkeys(
        ("coco_caption", "nocaps", "minigpt4_self_instruct_caption", "cc_sbu_align"), (CAPTION, EVAL_CAPTION)
    ),
    "flickr30k_caption": (CAPTION, EVAL_CAPTION),
    **dict.fromkeys(("vg_caption", "sbu_caption"), (CAPTION, EVAL_CAPTION)),
    **dict.fromkeys(("conceptual_caption_3m", "conceptual_caption_12m"), (CAPTION, EVAL_CAPTION)),
    **dict.fromkeys(("coco_retrieval", "flickr30k"), (CAPTION, {"image": Tensor, "index": int})),
    **dict.fromkeys(("coco_vqa", "ok_vqa", "vg_vqa"), (VQA, EVAL_VQA)),
    "aok_vqa": (VQA | TEXT_ID, EVAL_VQA | TEXT_ID | KNOWLEDGE),
    "gqa": (VQA | TEXT_ID, EVAL_VQA | TEXT_ID | {"answer": (str, type(None))}),
    "nlvr": (PAIR, PAIR),
    "snli_ve": (LABEL, LABEL),
    **dict.fromkeys(("llava_pretrain", "llava_instruct_150k", "llava_mix665k"), (VQA | TEXT_ID, {})),
    **dict.fromkeys(("sharegpt4v", "sharegpt4v_pretrain", "sharegpt4v_mix665k"), (VQA | TEXT_ID, {})),
    "textvqa": (VQA, EVAL_VQA),
    "textcaps": (CAPTION, EVAL_CAPTION),
    "vizwiz": ({key: kind for key, kind in VQA.items() if key != "question_id"}, EVAL_VQA),
    "scienceqa": (VQA | TEXT_ID, EVAL_VQA | TEXT_ID | {"choices": list, "correct_choice_idx": int, "answer": str}),
    "docci": (CAPTION, EVAL_CAPTION),
    **dict.fromkeys(("refcoco", "refcoco_plus", "refcocog"), (CAPTION | {"bbox": list}, EVAL_CAPTION | {"bbox": list})),
    "coco_instances": tuple(keys | {"boxes": list, "labels": list} for keys in (CAPTION, EVAL_CAPTION)),
}
KEYS |= {f"{name}_instruct": ({**KEYS[name][0], "text_output": str}, KEYS[name][1]) for name in INSTRUCTED}
ASKED = {**LABEL, "label": str, "answer": str, "prompt": str, "question_id": str}
KEYS["snli_ve_instruct"] = (ASKED, ASKED)
"""Data set → keys and types of a training sample, and of one of the other splits (LAVIS' datasets)."""

SAMPLES = {
    ("coco_caption", "train"): 6,
    ("coco_caption_instruct", "train"): 6,
    ("coco_vqa_instruct", "train"): 6,
    ("coco_retrieval", "train"): 6,
    ("coco_vqa", "default", "train"): 6,
    ("gqa", "all", "train"): 6,
    ("llava_mix665k", "train"): 5,
    **{(name, "train"): 4 for name in ("sharegpt4v", "sharegpt4v_pretrain", "sharegpt4v_mix665k")},
    ("gqa_instruct", "all", "train"): 6,
}
"""How many samples a split has where they are not three."""
OTHERS = ("image_text_shards", "region_", "volta_")
"""How shapes without pictures in rows begin; they have tests of their own."""
CARDS = load_cards()
CASES = [
    pytest.param(CARDS.dataset(name, kind), form, id=f"{name}-{kind}-{form.__name__}")
    for name, forms in FORMS.items()
    for form in forms
    for kind in CARDS.card_of(name).datasets[name]
]


def test_no_name_is_forgotten() -> None:
    every = [types for card in CARDS.families.values() for types in card.datasets.values()]
    declared = {config.name for types in every for config in types.values() if not config.builder.startswith(OTHERS)}
    assert declared == set(FORMS) == set(KEYS)


def expected(config: DatasetConfig, split: str) -> int:
    return SAMPLES.get((config.name, config.type, split), SAMPLES.get((config.name, split), 3))


def check_sample(sample: dict[str, Any], keys: dict[str, Any], dtype: torch.dtype) -> None:
    assert sample.keys() == keys.keys()
    for key, kind in keys.items():
        assert isinstance(sample[key], kind), key
        if kind is Tensor:
            assert sample[key].shape == (3, 224, 224)
            assert sample[key].dtype == dtype


@pytest.mark.parametrize(("config", "form"), CASES)
def test_build(config: DatasetConfig, form: Write, tmp_path: Path) -> None:
    form(tmp_path)
    if form.__name__ == "gqa_lavis" and config.type == "all":
        pytest.skip("all questions are published in the official form only")
    built = build_datasets(config, BuildContext(tmp_path, split_names(config)))
    assert list(built) == split_names(config)
    for split, dataset in built.items():
        assert (dataset.name, dataset.split, len(dataset)) == (config.name, split, expected(config, split))
        keys = CONVERSATION if config.type == "conversation" else KEYS[config.name][0 if split == "train" else 1]
        check_sample(dict(dataset[0]), keys, torch.float32)
        loaded = dataset.load(0, torch.Generator().manual_seed(0))
        check_sample(dict(loaded), keys, torch.uint8)
        again = dataset.load(0, torch.Generator().manual_seed(0))
        for key, value in loaded.items():
            (one, other) = (v if key == "image" and isinstance(v, list) else [v] for v in (value, again[key]))
            same = zip(one, other, strict=True)
            assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in same), key
        batch = dataset.collater([dataset[i] for i in range(len(dataset))])
        images = [batch[key] for key, kind in keys.items() if kind is Tensor]
        assert all(image.shape == (len(dataset), 3, 224, 224) for image in images)


@pytest.mark.parametrize("name", [name for name in FORMS if "train" in split_names(CARDS.dataset(name))])
def test_runs_through_a_mixture(name: str, tmp_path: Path) -> None:
    FORMS[name][0](tmp_path)
    train = build_datasets(CARDS.dataset(name), BuildContext(tmp_path, ["train"]))["train"]
    mixture = Mixture({name: train}, batch_size=2, num_workers=0, shuffle=False)
    batches = list(mixture)
    assert sum(len(batch["instance_id"]) for batch in batches) == len(train)
    assert all(batch["dataset"] == name for batch in batches)


@pytest.mark.parametrize("name", [name for name, forms in FORMS.items() if len(forms) > 1])
def test_both_forms_give_the_same_samples(name: str, tmp_path: Path) -> None:
    """What the authors publish and what LAVIS made of it are one data set."""
    config = CARDS.dataset(name)
    built = []
    for number, form in enumerate(FORMS[name]):
        form(tmp_path / str(number))
        built.append(build_datasets(config, BuildContext(tmp_path / str(number))))
    first, second = built
    assert list(first) == list(second)
    for split in first:
        for index in range(len(first[split])):
            one, other = (dict(data[split].load(index, torch.Generator().manual_seed(3))) for data in (first, second))
            assert one.keys() == other.keys()
            for key, value in one.items():
                same = torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key]
                assert same, (split, index, key)
