"""Every data set in little: annotations in the form of its authors or of LAVIS, and pictures, below a cache root."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.support.pictures import encoded, pixels, write_json

Write = Callable[[Path], None]


def picture(root: Path, name: str, seed: int = 0) -> None:
    """One small picture."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(pixels(seed, 24, 32), "PNG" if name.endswith(".png") else "JPEG"))


def pictures(root: Path, names: Iterable[str]) -> None:
    """Several, each with a content of its own."""
    for seed, name in enumerate(names):
        picture(root, name, seed)


SUBSETS = {"train2014": range(1, 4), "val2014": range(11, 14), "test2015": range(21, 24)}
"""The ids of COCO's images; no two subsets share one."""


def coco_name(subset: str, number: int) -> str:
    """`val2014/COCO_val2014_000000000011.jpg`."""
    return f"{subset}/COCO_{subset}_{number:012d}.jpg"


ANSWERS = ["net", "net", "a net", "net", "netting", "net", "net", "net", "net", "a net"]


def official_vqa(folder: Path, subset: str, prefix: str = "v2_", answers: bool = True) -> None:
    """The official files of one split: a question about each picture."""
    about = {"info": {"version": "2.0"}, "data_type": "mscoco", "license": {"name": "CC"}, "data_subtype": subset}
    questions = [
        {"image_id": i, "question": f"What is in picture {i}, please?", "question_id": 10 * i} for i in SUBSETS[subset]
    ]
    task = {"task_type": "Open-Ended", "questions": questions}
    write_json(folder / f"{prefix}OpenEnded_mscoco_{subset}_questions.json", {**about, **task})
    if answers:
        given = [{"answer": a, "answer_confidence": "yes", "answer_id": k} for k, a in enumerate(ANSWERS, 1)]
        rows = [
            {"question_id": q["question_id"], "image_id": q["image_id"], "answers": given, "answer_type": "other"}
            for q in reversed(questions)
        ]
        write_json(folder / f"{prefix}mscoco_{subset}_annotations.json", {**about, "annotations": rows})


def lavis_vqa(subset: str, answers: bool = True) -> list[dict[str, Any]]:
    """The same questions in LAVIS' form."""
    more = {"answer": ANSWERS} if answers else {}
    return [
        {
            "question_id": 10 * i,
            "question": f"What is in picture {i}, please?",
            "image": coco_name(subset, i),
            "dataset": "vqa",
            **more,
        }
        for i in SUBSETS[subset]
    ]


def coco_images(root: Path) -> None:
    """Three pictures of each of COCO's subsets of 2014 and 2015."""
    pictures(root / "coco/images", [coco_name(subset, i) for subset, ids in SUBSETS.items() for i in ids])


def coco_captions(root: Path) -> None:
    """Karpathy's split."""
    coco_images(root)
    rows = [
        {"caption": f"A thing, {k}.", "image": coco_name("train2014", i), "image_id": f"coco_{i}"}
        for i in range(1, 4)
        for k in range(2)
    ]
    write_json(root / "coco/annotations/coco_karpathy_train.json", rows)
    for split in ("val", "test"):
        held = [{"image": coco_name("val2014", i), "caption": ["A thing.", "It."]} for i in SUBSETS["val2014"]]
        write_json(root / f"coco/annotations/coco_karpathy_{split}.json", held)


def vqav2(root: Path) -> None:
    """The official form."""
    coco_images(root)
    for subset, answered in (("train2014", True), ("val2014", True), ("test2015", False)):
        official_vqa(root / "coco/annotations", subset, answers=answered)


def vqav2_lavis(root: Path) -> None:
    """LAVIS' form."""
    coco_images(root)
    folder = root / "coco/annotations"
    write_json(folder / "vqa_train.json", lavis_vqa("train2014"))
    write_json(folder / "vqa_val.json", lavis_vqa("val2014"))
    write_json(folder / "vqa_val_eval.json", lavis_vqa("val2014"))
    write_json(folder / "vqa_test.json", lavis_vqa("test2015", answers=False))
    write_json(folder / "answer_list.json", ["net", "a net", "netting"])
    official_vqa(folder, "val2014")


def okvqa(root: Path) -> None:
    """The official form."""
    coco_images(root)
    for subset in ("train2014", "val2014"):
        official_vqa(root / "okvqa/annotations", subset, prefix="")


def okvqa_lavis(root: Path) -> None:
    """LAVIS' form."""
    coco_images(root)
    folder = root / "okvqa/annotations"
    write_json(folder / "okvqa_train.json", lavis_vqa("train2014"))
    write_json(folder / "vqa_val_eval.json", lavis_vqa("val2014"))
    write_json(folder / "answer_list.json", ["net", "a net"])
    official_vqa(folder, "val2014", prefix="")


def aokvqa_rows(image: Callable[[int], dict[str, Any]], subset: str) -> list[dict[str, Any]]:
    """Records of A-OKVQA; `image` says how one names its picture. Those of test have no answers."""
    answered = subset != "test2015"
    more: dict[str, Any] = {"correct_choice_idx": 1, "direct_answers": ANSWERS} if answered else {}
    asked = {"question": "What is it for?", "choices": ["net", "dog", "cat", "sun"]}
    return [{"question_id": f"22Mex{i}", **asked, **image(i), **more} for i in SUBSETS[subset]]


AOKVQA_SPLITS = (("train", "train2014"), ("val", "val2014"), ("test", "test2015"))


def aokvqa(root: Path) -> None:
    """LAVIS' form."""
    coco_images(root)
    for split, subset in AOKVQA_SPLITS:

        def image(i: int, subset: str = subset) -> dict[str, Any]:
            return {"image": coco_name(subset, i)}

        write_json(root / f"aokvqa/annotations/aokvqa_v1p0_{split}.json", aokvqa_rows(image, subset))
    write_json(root / "aokvqa/annotations/specialized_vocab_train_lavis.json", ["net", "dog"])


def aokvqa_official(root: Path) -> None:
    """The official form: pictures by the ids of COCO 2017."""
    coco_images(root)
    for split, subset in AOKVQA_SPLITS:
        rows = aokvqa_rows(lambda i: {"image_id": i, "split": "x", "rationales": ["so"]}, subset)
        write_json(root / f"aokvqa/official/aokvqa_v1p0_{split}.json", rows)


def gqa_record(i: int, answered: bool) -> dict[str, Any]:
    """One record of the official form."""
    answer = {"answer": "yes", "fullAnswer": "Yes, it is."} if answered else {}
    return {
        "imageId": str(i),
        "question": "Is it red?",
        "isBalanced": True,
        "entailed": [],
        "types": {"a": "b"},
        **answer,
    }


GQA_FILES = ("train_balanced", "val_balanced", "testdev_balanced", "test_balanced")


def gqa_lavis(root: Path) -> None:
    """LAVIS' form: lists."""
    pictures(root / "gqa/images", [f"{i}.jpg" for i in range(1, 4)])
    for name in GQA_FILES:
        answer = {} if name == "test_balanced" else {"answer": "yes"}
        rows = [{"question_id": f"0{i}", "image": f"{i}.jpg", "question": "Is it red?", **answer} for i in range(1, 4)]
        write_json(root / f"gqa/annotations/{name}_questions.json", rows)


def gqa(root: Path) -> None:
    """The official form: dicts by question id."""
    pictures(root / "gqa/images", [f"{i}.jpg" for i in range(1, 4)])
    for name in (*GQA_FILES, "train_all", "val_all"):
        part = "_questions_0" if name == "train_all" else "_questions"
        records = {f"0{i}": gqa_record(i, name != "test_balanced") for i in range(1, 4)}
        write_json(root / f"gqa/annotations/{name}{part}.json", records)


def vg_images(root: Path) -> None:
    """The two folders of Visual Genome."""
    pictures(root / "vg/images", ["VG_100K/1.jpg", "VG_100K_2/2.jpg", "VG_100K_2/3.jpg"])


def vg(root: Path) -> None:
    """LAVIS' form, with the paths of other machines that it has."""
    vg_images(root)
    away = "/export/share/datasets/vision/visual-genome/image"
    captions = [{"image": f"{away}/{i}.jpg", "caption": "a red thing", "image_id": f"vg_{i}"} for i in range(1, 4)]
    write_json(root / "vg/annotations/vg_caption.json", captions)
    rows = [
        {"question_id": i, "question": "Is it?", "answer": "yes.", "image": f"image/{i}.jpg", "dataset": "vg"}
        for i in range(1, 4)
    ]
    write_json(root / "vg/annotations/vg_qa.json", rows)


def sbu(root: Path) -> None:
    """LAVIS' form; names carry a folder that the disk lacks."""
    pictures(root / "sbu_captions/images", [f"p{i}.jpg" for i in range(3)])
    rows = [{"image": f"sbu/p{i}.jpg", "caption": "my cat", "url": f"http://h/p{i}.jpg"} for i in range(3)]
    write_json(root / "sbu_captions/annotations/sbu.json", rows)


def conceptual(root: Path) -> None:
    """A list of LAVIS' form for 3M, a table for 12M."""
    pictures(root / "conceptual_caption/images", [f"{i}.jpg" for i in range(3)])
    pictures(root / "conceptual_caption/images_12m", [f"{i}.jpg" for i in range(3)])
    folder = root / "conceptual_caption/annotations"
    write_json(folder / "cc3m.json", [{"image": f"{i}.jpg", "caption": "a view"} for i in range(3)])
    (folder / "cc12m.tsv").write_text("image\tcaption\n" + "".join(f'{i}.jpg\tthe "view"\n' for i in range(3)))


def nocaps(root: Path) -> None:
    """The official form."""
    names = {split: [f"00{split}{i}.jpg" for i in range(3)] for split in ("val", "test")}
    pictures(root / "nocaps/images", [f"{split}/{name}" for split, some in names.items() for name in some])
    for split, file in (("val", "nocaps_val_4500_captions"), ("test", "nocaps_test_image_info")):
        images: list[dict[str, Any]] = [
            {"id": 7 + i, "open_images_id": name[:-4], "file_name": name, "coco_url": f"https://h/{name}", "width": 32}
            for i, name in enumerate(names[split])
        ]
        value: dict[str, Any] = {"info": {}, "licenses": [], "images": images}
        if split == "val":
            for image, domain in zip(images, ("in-domain", "near-domain", "out-domain"), strict=True):
                image["domain"] = domain
            captions = [(image["id"], f"caption {k}") for k in range(2) for image in images]
            value["annotations"] = [{"id": n, "image_id": i, "caption": c} for n, (i, c) in enumerate(captions)]
        write_json(root / f"nocaps/annotations/{file}.json", value)


def nocaps_lavis(root: Path) -> None:
    """LAVIS' form."""
    pictures(root / "nocaps/images", [f"{split}/00{split}{i}.jpg" for split in ("val", "test") for i in range(3)])
    for split in ("val", "test"):
        rows = [{"image": f"{split}/00{split}{i}.jpg", "img_id": 7 + i} for i in range(3)]
        write_json(root / f"nocaps/annotations/nocaps_{split}.json", rows)


def minigpt4(root: Path, flat: bool = False) -> None:
    """The authors' form, or VPGTrans' flat list."""
    pictures(root / "cc_sbu_align/image", [f"{i}.jpg" for i in range(2, 5)])
    rows = [{"image_id": str(i), "caption": f"The image shows a thing. It is: {i}!"} for i in range(2, 5)]
    write_json(root / "cc_sbu_align/filter_cap.json", rows if flat else {"annotations": rows})


def minigpt4_list(root: Path) -> None:
    """VPGTrans' form."""
    minigpt4(root, flat=True)


def nlvr_images(root: Path) -> None:
    """The three folders of NLVR2's pictures."""
    pairs = [f"images/train/{6 + i}/train-1{i}-0" for i in range(3)]
    pairs += [f"{split}/{split}-{i}-0" for split in ("dev", "test1") for i in range(3)]
    pictures(root / "nlvr/images", [f"{pair}-img{side}.png" for pair in pairs for side in (0, 1)])


def nlvr_pair(split: str, i: int) -> str:
    """What the names of a pair's pictures begin with."""
    return f"images/train/{6 + i}/train-1{i}-0" if split == "train" else f"{split}/{split}-{i}-0"


def nlvr(root: Path) -> None:
    """LAVIS' form."""
    nlvr_images(root)
    for split, file in (("train", "train"), ("dev", "dev"), ("test1", "test")):
        rows = [
            {
                "images": [f"{nlvr_pair(split, i)}-img{side}.png" for side in (0, 1)],
                "sentence": "The left image shows a dog, the right one none.",
                "label": str(i % 2 == 0),
            }
            for i in range(3)
        ]
        write_json(root / f"nlvr/annotations/{file}.json", rows)


def nlvr_official(root: Path) -> None:
    """The official form: one record a line, pictures by the identifier."""
    import json

    nlvr_images(root)
    for split in ("train", "dev", "test1"):
        rows = [
            {
                "sentence": "The left image shows a dog, the right one none.",
                "left_url": "https://h/l.png",
                "right_url": "https://h/r.png",
                "label": str(i % 2 == 0),
                "identifier": f"{nlvr_pair(split, i).rpartition('/')[2]}-1",
                **({"directory": 6 + i} if split == "train" else {}),
            }
            for i in range(3)
        ]
        path = root / f"nlvr/official/{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)))


def flickr30k(root: Path) -> None:
    """LAVIS' form."""
    names = [f"flickr30k-images/{i}.jpg" for i in range(3)]
    pictures(root / "flickr30k/images", names)
    train = [{"image": name, "caption": "A man.", "image_id": i} for i, name in enumerate(names)]
    write_json(root / "flickr30k/annotations/train.json", train)
    for split in ("val", "test"):
        held = [{"image": name, "caption": ["A man.", "Someone."]} for name in names]
        write_json(root / f"flickr30k/annotations/{split}.json", held)


def snli_ve(root: Path) -> None:
    """LAVIS' form: names without suffix."""
    pictures(root / "flickr30k/images", [f"flickr30k-images/{i}.jpg" for i in range(3)])
    for split in ("train", "dev", "test"):
        labels = ("contradiction", "neutral", "entailment")
        rows = [{"image": str(i), "sentence": "Someone.", "label": label} for i, label in enumerate(labels)]
        write_json(root / f"snli/annotations/ve_{split}.json", rows)


FORMS: dict[str, list[Write]] = {
    "coco_caption": [coco_captions],
    "coco_retrieval": [coco_captions],
    "coco_vqa": [vqav2, vqav2_lavis],
    "ok_vqa": [okvqa, okvqa_lavis],
    "aok_vqa": [aokvqa, aokvqa_official],
    "gqa": [gqa, gqa_lavis],
    "vg_caption": [vg],
    "vg_vqa": [vg],
    "sbu_caption": [sbu],
    "conceptual_caption_3m": [conceptual],
    "conceptual_caption_12m": [conceptual],
    "nocaps": [nocaps, nocaps_lavis],
    "minigpt4_self_instruct_caption": [minigpt4, minigpt4_list],
    "cc_sbu_align": [minigpt4],
    "nlvr": [nlvr, nlvr_official],
    "flickr30k": [flickr30k],
    "flickr30k_caption": [flickr30k],
    "snli_ve": [snli_ve],
}
INSTRUCTED = (
    *(
        "coco_caption",
        "flickr30k_caption",
        "vg_caption",
        "sbu_caption",
        "conceptual_caption_3m",
        "conceptual_caption_12m",
    ),
    *("coco_vqa", "ok_vqa", "aok_vqa", "vg_vqa", "gqa", "snli_ve"),
)
"""Data sets that have a twin for instructions, from the same files."""
FORMS |= {f"{name}_instruct": FORMS[name] for name in INSTRUCTED}
"""Data set → the forms in which its annotations are published."""
