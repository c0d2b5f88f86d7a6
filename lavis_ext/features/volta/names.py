"""What volta calls its folders and files, and where both of two published names are looked for.

Its document names `train_obj36-36.tsv` in `resnet101_faster_rcnn_genome_imgfeats/`, its scripts
`train2014_obj36-36.tsv` in `imgfeats/` (github.com/e-bug/volta, data/mscoco).
"""

from __future__ import annotations

from pathlib import Path

from lavis_ext.errors import UsageError

FAMILY = "mscoco"
FOLDERS = {"train": "train2014", "valid": "val2014", "test": "test2015"}
"""The folder of pictures of each split of features."""
TOGETHER = {"trainval": ("train", "valid"), "test": ("test",)}
"""What each LMDB holds."""
FEATURES = ("resnet101_faster_rcnn_genome_imgfeats", "imgfeats")
BOXES = (36, 36)


def feature_folder(root: Path) -> Path:
    """`mscoco/resnet101_faster_rcnn_genome_imgfeats` below the cache root, or `mscoco/imgfeats` where that is there."""
    folders = [root / FAMILY / name for name in FEATURES]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def rows_name(split: str, boxes: tuple[int, int] = BOXES) -> str:
    """`train2014_obj36-36.tsv`, as the scripts call it."""
    return f"{FOLDERS[split]}_obj{boxes[0]}-{boxes[1]}.tsv"


def find_rows(folder: Path, split: str, boxes: tuple[int, int] = BOXES) -> Path:
    """The merged rows of a split under either of their names; raises UsageError that tells both."""
    names = [rows_name(split, boxes), f"{split}_obj{boxes[0]}-{boxes[1]}.tsv"]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        what = f"holds neither {names[0]} nor {names[1]}"
        raise UsageError(str(folder), what, f"run merge_coco_image.py --split {split}, or name its folder")
    return found


def find_serialised(root: Path, split: str) -> Path | None:
    """What `convert_coco_lmdb.py` made of `trainval` or `test`: the store, else the LMDB; None without either."""
    for folder in (root / FAMILY / name / "volta" for name in FEATURES):
        for name in (f"{split}_feat.store", f"{split}_feat.lmdb"):
            if (folder / name).is_dir():
                return folder / name
    return None
