"""Small data sets on region features in their published forms, written here independently of the readers under test."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.types import Dataset
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.features import create_store
from tests.support.features import Image, b64, make_image

WORDS = "the cat dog tree ball red green is what where on two one in of person left right yes no it shows"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *WORDS.split()]
VOCAB += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"] + ["?", "."]
ID = {token: number for number, token in enumerate(VOCAB)}
PAD, UNK, CLS, SEP, MASK = range(5)
VOCAB_PATH = "oscar/pretrained_models/base-vg-labels/ep_107_1192087/vocab.txt"
OTHER_VOCAB = VOCAB_PATH.replace("ep_107_1192087", "ep_67_588997")
BOXES = {"train": [3, 5, 1, 8, 2, 4], "val": [2, 4, 6], "test": [1, 2, 3]}


def ids(text: str) -> list[int]:
    """The ids of words that stand in the vocabulary."""
    return [ID[word] for word in text.split()]


def features(count: int, seed: int, columns: int = 2054) -> np.ndarray:
    """Random rows whose last six are a box."""
    rng = np.random.default_rng([seed, count])
    rows = np.maximum(rng.normal(size=(count, columns)), 0).astype(np.float32)
    if columns == 2054 and count:
        low = rng.random((count, 2)) * 0.5
        size = rng.random((count, 2)) * 0.4 + 0.05
        rows[:, 2048:] = np.concatenate([low, low + size, size], 1)
    return rows


def write(path: Path, data: Any) -> Path:
    """JSON, or bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def save_pt(path: Path, value: Any) -> Path:
    """torch's file of a dict."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def save_features(path: Path, counts: dict[Any, int]) -> dict[Any, np.ndarray]:
    """`{id: tensor [n, 2054]}`; returns the arrays."""
    arrays = {key: features(count, number) for number, (key, count) in enumerate(counts.items())}
    save_pt(path, {key: torch.from_numpy(array) for key, array in arrays.items()})
    return arrays


def write_vocab(root: Path) -> Path:
    """The tokenizer of both pre-trained models."""
    text = "".join(f"{token}\n" for token in VOCAB).encode()
    write(root / OTHER_VOCAB, text)
    return write(root / VOCAB_PATH, text)


ANSWERS = {"yes": 7, "no": 0, "red ball": 3, "two": 12}
"""Not in the order of the label ids, as the published dict is not."""


def write_vqa(root: Path) -> dict[Any, np.ndarray]:
    """Oscar's vqa/: questions with tags, pickled vocabularies, features by split; returns the training features."""
    base = root / "oscar/datasets/vqa"
    write_vocab(root)
    write(base / "cache/trainval_ans2label.pkl", pickle.dumps(ANSWERS))
    label2ans: list[str] = [f"unused {number}" for number in range(13)]
    for answer, label in ANSWERS.items():
        label2ans[label] = answer
    write(base / "cache/trainval_label2ans.pkl", pickle.dumps(label2ans))
    train = [
        {"q": "what is red ?", "o": "cat;dog;red ball", "an": [3, 7], "s": [1, 0.3], "img_id": 11},
        {"q": "is it a cat ?", "o": "tree", "an": [], "s": [], "img_id": 12},
        {"q": "where is the dog ?", "o": "", "an": [0], "s": [0.6], "img_id": 13},
        {"q": "is the ball red ?", "o": "ball;person", "an": [12, 0], "s": [0.9, 0.6], "img_id": 14},
    ]
    write(base / "2k/train2014_qla_mrcnn.json", train)
    write(base / "2k/train2014_qla.json", [{**row, "o": "person"} for row in train])
    write(base / "2k/val2014_qla_mrcnn.json", [{**row, "img_id": 21 + i} for i, row in enumerate(train[:3])])
    for name in ("test2015", "test-dev2015"):
        rows = [{"q": "what is on the tree ?", "o": "tree;cat", "img_id": 31 + i, "q_id": 310 + i} for i in range(3)]
        write(base / f"2k/{name}_qla_mrcnn.json", rows)
    arrays = save_features(base / "2k/train_img_frcnn_feats.pt", dict(zip(range(11, 17), BOXES["train"], strict=True)))
    save_features(base / "2k/val_img_frcnn_feats.pt", dict(zip(range(21, 24), BOXES["val"], strict=True)))
    save_features(base / "2k/test2015_img_frcnn_feats.pt", dict(zip(range(31, 34), BOXES["test"], strict=True)))
    return arrays


def write_gqa(root: Path) -> None:
    """Oscar's GQA/ with its labels in `questions1.2/` and its answers as a dict."""
    base = root / "oscar/datasets/GQA"
    write_vocab(root)
    write(base / "questions1.2/trainval_testdev_all_ans2label.pkl", pickle.dumps(ANSWERS))
    answers = {label: answer for answer, label in ANSWERS.items()}
    write(base / "questions1.2/trainval_testdev_all_label2ans.pkl", pickle.dumps(answers))
    asked = {"q": "is it red ?", "o": "cat;ball"}
    rows = [{**asked, "an": [label], "img_id": f"n{i}"} for i, label in enumerate((7, 3, 0))]
    for kind in ("bal", "all"):
        for split in ("train", "val", "testdev"):
            write(base / f"0.4true/gqa_{kind}_qla_{split}.json", rows if kind == "bal" else [*rows, rows[0]])
    test = [{"q": "what is it ?", "o": "dog", "img_id": f"n{i}", "q_id": f"00{i}"} for i in range(3)]
    write(base / "0.4true/gqa_all_qla_submission.json", test)
    save_features(base / "0.4true/gqa_img_frcnn_feats.pt", {"n0": 2, "n1": 4, "n2": 3})


def write_nlvr2(root: Path) -> None:
    """Oscar's nlvr2/: pairs."""
    base = root / "oscar/datasets/nlvr2/ft_corpus"
    write_vocab(root)
    rows = []
    for number, label in enumerate((1, 0, 1)):
        names = {side: f"nlvr2_train-{number}-0-img{i}" for i, side in enumerate(("left", "right"))}
        tags = {"left": "cat;dog;tree", "right": "ball"}
        rows.append({"q": "the left cat is on the right tree .", "o": tags, "img_id": names, "label": label})
    for name in ("train", "dev", "balanced_dev", "unbalanced_dev", "test1", "balanced_test1", "unbalanced_test1"):
        write(base / f"nlvr2_{name}.json", rows if "balanced" not in name else rows[:2])
    counts = {name: i + j + 1 for i, row in enumerate(rows) for j, name in enumerate(row["img_id"].values())}
    save_features(base / "nlvr2_img_frcnn_feats.pt", counts)


def built(name: str, root: Path, kind: str = "default", **args: Any) -> dict[str, Dataset]:
    """The splits of a shipped declaration, with other arguments."""
    config = load_cards().dataset(name, kind)
    return build_datasets(replace(config, args={**config.args, **args}), BuildContext(root))


TAGS: dict[str, Any] = {"train": "cat tree", "minival": [{"class": "dog"}, {"class": "red ball"}], "test": "tree"}
"""As text, or as dicts of a detector."""


def captions(key: int, count: int) -> list[str]:
    """Captions that tell their image and number: the words `two` and `one` in a pattern."""
    return [f"the cat is on {'two ' * (key % 7)}{'one ' * number}tree" for number in range(count)]


IR_KEYS = {"train": range(11, 17), "minival": range(21, 24), "test": range(31, 34)}


def write_ir(root: Path, layout: str = "oscar") -> None:
    """Retrieval: Oscar's dictionaries, or VinVL's captions with features.tsv and predictions.tsv."""
    write_vocab(root)
    base = root / ("oscar/datasets/coco_ir" if layout == "oscar" else "vinvl/datasets/coco_ir")
    for split, numbers in IR_KEYS.items():
        told = {key: captions(key, 6 if key == 12 else 5) for key in numbers}
        save_pt(base / f"{split}_captions.pt", told if split != "test" else {k: json.dumps(v) for k, v in told.items()})
        if layout == "oscar":
            counts = dict(zip(numbers, BOXES[split.replace("mini", "")], strict=True))
            save_features(base / f"{split}_img_frcnn_feats.pt", counts)
            save_pt(base / f"{split}_vg_labels.pt", dict.fromkeys(numbers, TAGS[split]))
    lists = {key: json.dumps([[other, n] for n in range(2) for other in (21, 22, 23)]) for key in IR_KEYS["minival"]}
    save_pt(base / "minival_caption_indexs_top20.pt", lists)
    write(base / "test_img_keys.tsv", b"33\n31\n32\n")
    write(base / "test_img_keys_1k.tsv", b"33\n31\n")
    if layout == "vinvl":
        write_vinvl_features(root)


def write_vinvl_features(root: Path) -> None:
    """`features.tsv` and `predictions.tsv` of the images that `write_ir` has captions of."""
    folder = root / load_cards().families["vinvl"].artifacts["features_coco"].storage
    every = [key for numbers in IR_KEYS.values() for key in numbers]
    rows = [f"{key}\t{key % 4 + 1}\t{b64(features(key % 4 + 1, key))}\n" for key in every]
    write(folder / "features.tsv", "".join(rows).encode())
    found = [{"class": "cat", "conf": 0.9, "rect": [1, 2, 3, 4]}, {"class": "red ball"}]
    tagged = json.dumps({"objects": found, "image_h": 480, "image_w": 640})
    write(folder / "predictions.tsv", "".join(f"{key}\t{tagged}\n" for key in every).encode())


def feature_rows(counts: dict[str, int]) -> bytes:
    """Captioning's `id, {"num_boxes", "features"}`."""
    rows = []
    for number, (image_id, count) in enumerate(counts.items()):
        value = json.dumps({"num_boxes": count, "features": b64(features(count, number))})
        rows.append(f"{image_id}\t{value}\n")
    return "".join(rows).encode()


def label_rows(tags: dict[str, list[str]]) -> bytes:
    """`id, [{"class", "conf", "rect"}]`."""
    labels = {key: [{"class": tag, "conf": 0.7, "rect": [1, 2, 30, 40]} for tag in some] for key, some in tags.items()}
    return "".join(f"{key}\t{json.dumps(some)}\n" for key, some in labels.items()).encode()


def write_captions(
    root: Path, base: str = "oscar/datasets/coco_caption", splits: tuple[str, ...] = ("train", "val", "test")
) -> Path:
    """Captioning: a YAML a split, with features, labels and (not in test) captions."""
    write_vocab(root)
    folder = root / base
    for start, split in enumerate(splits, 1):
        keys = [str(start * 10 + number) for number in range(3)]
        write(folder / f"{split}.feature.tsv", feature_rows(dict(zip(keys, (2, 4, 3), strict=True))))
        tags = dict(zip(keys, (["cat", "red ball"], ["tree"], []), strict=True))
        write(folder / f"{split}.label.tsv", label_rows(tags))
        lines = [f"feature: {split}.feature.tsv", f"label: {split}.label.tsv"]
        if split != "test":
            texts = ("the cat is on the tree", "two red ball", "it is one dog on the left")
            rows = [
                {"image_id": key, "id": n, "caption": text} for n, key in enumerate(keys) for text in texts[: n + 1]
            ]
            write(folder / f"{split}_caption.json", rows)
            lines.append(f"caption: {split}_caption.json")
        write(folder / f"{split}.yaml", "\n".join(lines).encode())
    return folder


def write_corpus(root: Path) -> Path:
    """A corpus of three sets of images, one in chunks, with tags and answers."""
    write_vocab(root)
    base = root / "vinvl/pretrain_corpus"
    tags = {"coco": ["cat"], "gqa": ["dog"], "oi": ["tree"]}
    folders = {"coco": ["coco_x/model"], "gqa": ["gqa_x/model"], "oi": ["oi_x/model/0", "oi_x/model/1"]}
    for name, places in folders.items():
        for chunk, place in enumerate(places):
            folder = root / "vinvl/image_features" / place
            counts = {str(number): number % 3 + 1 for number in range(4)}
            rows = [f"{key}\t{count}\t{b64(features(count, chunk))}\n" for key, count in counts.items()]
            write(folder / "features.tsv", "".join(rows).encode())
            label = label_rows({key: [*tags[name], *["red"] * (chunk + 1)] for key in counts})
            write(folder / "predictions.tsv", label)
    answers = "".join(f"{number}\t{json.dumps({'labels': ['yes', 'two']})}\n" for number in range(4))
    write(root / "vinvl/image_features/gqa_x/model/QA_fileB.tsv", answers.encode())
    lines = [f"coco_train_{n}\tcoco_train_{n}\tthe cat {'is ' * n}on it\n" for n in range(4)]
    lines += [f"gqa_img_{n}\tgqa_qa_{n}\tis it {'red ' * (n + 1)}\n" for n in range(4)]
    lines += [f"oi_img_{n % 2}_{n}\toi_img_{n % 2}_{n}\ttwo {'dog ' * (n + 1)}\n" for n in range(4)]
    write(base / "coco_flickr30k_gqa.tsv", "".join(lines).encode())
    paths = {name: places[0].removesuffix("/0") for name, places in folders.items()}
    tree: dict[str, Any] = {"corpus": "coco_gqa_oi", "corpus_file": "coco_flickr30k_gqa.tsv"}
    write(
        base / "coco_flickr30k_gqa_x152c4big2exp168.yaml",
        {**tree, "image_label_path": paths, "image_feature_path": paths},
    )
    return base


def write_volta(root: Path, hard: bool = True) -> list[Image]:
    """volta's annotations, hard negatives, and a store of trainval as its last step makes it; returns the images."""
    write_vocab(root)
    base = root / "mscoco"
    keys = {"train": range(1, 7), "valid": range(7, 9), "test": range(9, 11), "test1k": range(9, 10)}
    for split, numbers in keys.items():
        rows = [{"sentences": captions(key, 3 if key != 2 else 4), "id": key} for key in numbers]
        write(base / f"annotations/{split}_ann.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    images = [make_image(f"COCO_val2014_{key:012d}", key % 3 + 1, seed=key) for key in range(1, 11)]
    with create_store(base / "imgfeats/volta/trainval_feat.store") as writer:
        for image in images:
            writer.append(image.row())
    if hard:
        listed = [5, 1, 2, 3, 4, 6, 99]
        pool = np.array([[i, (i + 1) % 7, (i + 2) % 7] for i in range(7)], np.int64)
        write(base / "hard_negative.pkl", pickle.dumps({"train_image_list": listed, "train_hard_pool": pool}))
    return images
