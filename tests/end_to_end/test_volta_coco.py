"""volta's COCO document from its first command to its last, with its arguments, ending in its folders."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import pytest

from lavis_ext.cli import main
from lavis_ext.common.config.cards import load_cards
from lavis_ext.datasets.readers import decode_rgb
from lavis_ext.demo.coco import photo_of
from lavis_ext.demo.mirror import MirrorWriter
from lavis_ext.demo.world import World
from lavis_ext.features import open_store
from lavis_ext.features.formats.restricted import load_plain
from lavis_ext.oscar.volta import coco as names
from tests.support.region_data import built, write_vocab
from tests.support.regions import draw  # the module registers the detector fake_regions
from tests.world.export import export_coco, export_world

WORLD = World(seed=5, train=16, val=4, test=4, hidden=4)
# 12 scenes in train2014; 4 of train, 4 of val and 4 of test in val2014; 4 in test2015
IMAGES = {"train": 12, "valid": 12, "test": 4}
SCRIPTS = Path(__file__).parents[2] / "prepare_data" / "mscoco"
TREE = """
    annotations/test_ann.jsonl annotations/train_ann.jsonl annotations/valid_ann.jsonl dataset_coco.json
    images/train2014 images/val2014 images/test2015
    resnet101_faster_rcnn_genome_imgfeats/test_obj36-36.tsv resnet101_faster_rcnn_genome_imgfeats/train_obj36-36.tsv
    resnet101_faster_rcnn_genome_imgfeats/valid_obj36-36.tsv
    resnet101_faster_rcnn_genome_imgfeats/volta/trainval_feat.lmdb
    resnet101_faster_rcnn_genome_imgfeats/volta/test_feat.lmdb
"""
"""The tree at the end of volta's document."""
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("volta") / "mirror"
    export_world(WORLD, root, ["coco"])
    return root


@pytest.fixture
def root(tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache root; the demo's mirror stands for the internet."""
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("LAVIS_EXT_MIRROR", str(mirror))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def run(*words: object, code: int = 0) -> None:
    """One step, which must end with that exit code."""
    assert main(["volta", *map(str, words), "--quiet"]) == code, words


def extract(split: str, group: int = 0, total: int = 1, **more: Any) -> None:
    extra = [word for name, value in more.items() for word in (f"--{name}", value)]
    run("extract", "--split", split, "--group_id", group, "--total_group", total, "--detector", "fake_regions", *extra)


def keys(path: Path) -> list[bytes]:
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as reading:
        found: list[bytes] = pickle.loads(reading.get(b"keys"))
        assert set(found) == set(reading.cursor().iternext(values=False)) - {b"keys"}
    return found


def read_back(root: Path, tolerance: float) -> None:
    """volta's data sets on what the steps made: each image with its own regions and captions."""
    write_vocab(root)
    splits = built("volta_coco_caption", root)
    assert {split: len(data) for split, data in splits.items()} == {"train": 16 * 5, "val": 4, "test": 4, "test1k": 2}
    pairs = built("volta_coco_retrieval", root, hard_negatives=None)["train"]
    first: Any = pairs[0]
    assert len(pairs) == 16 * 5 and len(first["features"]) == 4
    scenes = {scene.id: scene for scene in WORLD.scenes("test")}
    for index in range(4):
        sample: Any = splits["test"][index]
        pixels = decode_rgb(photo_of(scenes[sample["image_id"]]).read())
        assert sample["features"].shape == (36, 2048) and sample["features"][5, 1] == 5
        assert float(sample["features"][0, 0]) == pytest.approx(pixels.mean(), rel=max(tolerance, 1e-6))
        assert sample["locs"][0].tolist() == pytest.approx([0, 0, 1, 1, 1])
    told = {key: list(captions) for key, captions in splits["test"].references().items()}
    assert told == {scene.id: list(photo_of(scene).captions) for scene in scenes.values()}


def test_the_document(root: Path, capsys: Capture) -> None:
    run("download")
    assert "made from coco's caption files, 24 images" in capsys.readouterr().out
    for split, total in (("train", 8), ("valid", 2), ("test", 1)):
        for group in range(total):
            extract(split, group, total)
        run("merge", "--split", split, "--total_group", total)
    (root.parent / "test1k_ids.txt").write_text("".join(f"{s.id}\n" for s in list(WORLD.scenes("test"))[:2]))
    for script in ("convert_coco_lmdb.sh", "extract_captions.sh"):
        shell = {**os.environ, "PYTHON": sys.executable}
        subprocess.run(
            ["bash", SCRIPTS / script, "--quiet"], env=shell, check=True, timeout=120, stdout=subprocess.DEVNULL
        )
    for split, count in (("train", 16), ("valid", 4), ("test", 4), ("test1k", 2)):
        lines = (root / "mscoco" / "annotations" / f"{split}_ann.jsonl").read_text().splitlines()
        assert len(lines) == count and all(len(json.loads(line)["sentences"]) == 5 for line in lines)
    home = root / "mscoco"
    features = home / "resnet101_faster_rcnn_genome_imgfeats"
    assert (home / "images" / "train2014").is_dir() and (home / "images").is_symlink()
    assert {p.name for p in home.iterdir()} >= {"annotations", "dataset_coco.json", "images", features.name}
    left = {path.relative_to(home).as_posix() for path in (*home.glob("*"), *home.glob("*/*"), *home.glob("*/volta/*"))}
    # hard_negative.pkl is the authors' own, which nothing makes
    assert {name.strip() for name in TREE.split()} <= left
    for name in ("train", "valid", "test"):
        merged = features / f"{name}_obj36-36.tsv"
        assert merged.is_symlink() and merged.read_bytes().count(b"\r\n") == IMAGES[name]
    assert len(keys(features / "volta" / "trainval_feat.lmdb")) == IMAGES["train"] + IMAGES["valid"]
    assert len(keys(features / "volta" / "test_feat.lmdb")) == IMAGES["test"]
    captioned = {json.loads(line)["id"] for line in (home / "annotations" / "train_ann.jsonl").read_text().splitlines()}
    assert {str(number).encode() for number in captioned} <= set(keys(features / "volta" / "trainval_feat.lmdb"))
    read_back(root, 0)
    run("convert", "--split", "trainval", "--to", "store")
    read_back(root, 1e-3)
    run("convert", "--split", "test", "--to", "store")
    store = open_store(features / "volta" / "test_feat.store")
    assert len(store) == 4 and store.about.dtype == "float16" and len(store.at(0)) == 36
    assert names.find_serialised(root, "test") == store.path
    assert names.find_serialised(root, "trainval") == features / "volta" / "trainval_feat.store"


def test_what_is_published_is_fetched(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = load_cards().families["mscoco"].artifacts
    photo = {"filepath": "val2014", "cocoid": 7, "split": "test", "sentences": [{"raw": "seven"}]}
    writer = MirrorWriter(tmp_path / "second")
    export_coco(WORLD, writer)
    published = [("dataset_coco.json", json.dumps({"images": [photo]}).encode()), ("dataset_flickr8k.json", b"{}")]
    writer.add_zip(card["caption_datasets"].url, published)
    writer.add(card["test1k_ids"].url, b"7\n")
    writer.add(card["hard_negative"].url, pickle.dumps({"train_image_list": [1], "train_hard_pool": [[1]]}))
    writer.finish()
    monkeypatch.setenv("LAVIS_EXT_MIRROR", str(tmp_path / "second"))
    run("download")
    for split, count in (("test", 1), ("test1k", 1), ("valid", 0)):
        run("captions", "--split", split)
        assert (root / "mscoco" / "annotations" / f"{split}_ann.jsonl").read_text().count("\n") == count
    assert load_plain((root / "mscoco" / "hard_negative.pkl").read_bytes(), "x")["train_image_list"] == [1]
    assert not (root / "coco" / "annotations").exists()
    run("download", "--offline")


def test_again_moves_nothing_and_keeps_what_is_made(root: Path, capsys: Capture) -> None:
    run("download")
    made = (root / "mscoco" / "dataset_coco.json").stat().st_mtime_ns
    capsys.readouterr()
    run("download")
    said = capsys.readouterr().out
    assert "is kept" in said and "downloaded 0" in said
    assert (root / "mscoco" / "dataset_coco.json").stat().st_mtime_ns == made
    run("download", "--dry-run")
    assert "coco/test2015" in capsys.readouterr().out


def test_pictures_that_are_there_are_not_replaced_by_a_link(root: Path) -> None:
    (root / "mscoco" / "images" / "mine").mkdir(parents=True)
    run("download")
    assert (root / "mscoco" / "images" / "mine").is_dir() and not (root / "mscoco" / "images").is_symlink()
    extract("test")


@pytest.mark.parametrize("family", ["mscoco", "coco"])
def test_it_plans_by_what_is_missing(root: Path, family: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and dataset_coco.json that somebody put there are not fetched again, and no disk is asked for them."""
    run("download")
    mine = root.parent / "mine"
    (mine / "mscoco").mkdir(parents=True)
    shutil.copytree(root / "coco" / "images", mine / family / "images")
    shutil.copy(root / "mscoco" / "dataset_coco.json", mine / "mscoco")
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(mine))
    capsys.readouterr()
    for words in (["--dry-run"], []):
        run("download", *words)
        said = capsys.readouterr().out
        assert "coco/train2014" not in said and said.count("is kept, ") == 3
    assert not (mine / "coco" / ".lavis_ext").exists()
    next((mine / family / "images" / "val2014").glob("*.jpg")).unlink()
    run("download", "--dry-run")
    said = capsys.readouterr().out
    assert "val2014 has 11 of 12 pictures" in said and "coco/val2014" in said and "coco/test2015 " not in said


def test_zips_are_read_where_they_are_kept(root: Path) -> None:
    run("download", "--no-unpack")
    extract("test")
    run("merge", "--split", "test")


def test_what_is_missing_is_told_at_every_step(root: Path, capsys: Capture) -> None:
    run("download")
    broken = next((root / "coco" / "images" / "test2015").glob("*.jpg"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])
    words = ("--split", "test", "--detector", "fake_regions")
    run("extract", *words, code=8)
    assert broken.stem in capsys.readouterr().out
    run("merge", "--split", "test", code=8)
    run("merge", "--split", "test", "--tolerance", "0.25")
    run("convert", "--split", "test")
    assert f"{broken.stem}: image is damaged" in capsys.readouterr().out
    broken.write_bytes(whole)
    run("extract", *words)
    run("merge", "--split", "test")
    assert "4 images, 1 added now" in capsys.readouterr().out


def test_an_archive_s_own_list_says_what_there_should_be(root: Path, capsys: Capture) -> None:
    run("download")
    lost = next((root / "coco" / "images" / "test2015").glob("*.jpg"))
    lost.unlink()
    words = ["coco/test2015", str(root.parent / "s"), "--detector", "fake_regions", "--quiet"]
    assert main(["features", "extract", *words]) == 8
    said = capsys.readouterr().out
    assert "3 of 4 images" in said and f"{lost.stem}: image is missing" in said


def test_rows_of_voltas_own_script_are_measured_by_the_pictures(root: Path, capsys: Capture) -> None:
    run("download")
    folder = root / "mscoco" / "imgfeats"
    extract("test", 0, 2, datadir=folder)
    extract("test", 1, 2, datadir=folder)
    for account in folder.glob(".*.json"):
        account.unlink()
    (folder / "test2015_obj36-36.tsv.1").write_bytes(b"")
    run("merge", "--split", "test", "--total_group", 2, code=8)
    assert "not extracted yet" in capsys.readouterr().out


def test_the_document_s_name_of_a_file_is_found_too(root: Path) -> None:
    run("download")
    extract("test")
    run("merge", "--split", "test")
    folder = root / "mscoco" / "resnet101_faster_rcnn_genome_imgfeats"
    (folder / "test2015_obj36-36.tsv").rename(folder / "test_obj36-36.tsv")
    folder.rename(root / "mscoco" / "imgfeats")
    run("convert", "--split", "test", "--needed-only")
    assert (root / "mscoco" / "imgfeats" / "volta" / "test_feat.lmdb" / "data.mdb").is_file()
    assert names.find_serialised(root, "test") == root / "mscoco" / "imgfeats" / "volta" / "test_feat.lmdb"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["extract", "--split", "dev"], "no split of `extract`"),
        (["extract", "--indir", "x"], "--indir: is not for `extract`; it is for convert"),
        (["extract", "--split", "test"], "has no test2015"),
        (["merge", "--total_group", "3"], "3 of 3 parts are not there"),
        (["convert"], "holds neither train2014_obj36-36.tsv nor train_obj36-36.tsv"),
        (["convert", "--split", "valid"], "no split of `convert`"),
        (["captions"], "karpathy"),
        (["captions", "--infile", "gone.json"], "is not there"),
        (["captions", "--dry-run"], "is not for `captions`; it is for download"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_name_their_way_out(root: Path, capsys: Capture, words: list[str], told: str) -> None:
    run(*words, code=2)
    assert told in capsys.readouterr().err
    assert not root.exists()


def test_weights_of_the_detector_must_be_there(root: Path, capsys: Capture) -> None:
    draw(root / "mscoco" / "images" / "val2014", ["COCO_val2014_000000000001"])
    run("extract", code=2)
    assert "lavis-ext prepare mscoco/butd_k36" in capsys.readouterr().err
    run("extract", "--caffemodel", "resnet101.caffemodel", code=2)
    assert "resnet101.caffemodel" in capsys.readouterr().err
    (root / "mscoco" / "detectors").mkdir()
    fetched = root / "mscoco" / "detectors" / "resnet101_faster_rcnn_final_iter_320000.caffemodel"
    fetched.write_bytes(b"\x07 no protocol buffer")
    run("extract", code=5)
    assert f"{fetched}: is no whole caffemodel" in capsys.readouterr().err


def test_flags_of_caffe_are_taken_and_told(root: Path, capsys: Capture) -> None:
    run("download")
    words = ("--def", "test.prototxt", "--cfg", "x.yml", "--set", "A", "1", "--out", root.parent / "mine.tsv")
    run("extract", "--split", "test", "--imgroot", root / "coco" / "images", *words, "--detector", "fake_regions")
    said = capsys.readouterr().out
    assert said.count("caffe is not used") == 3 and (root.parent / "mine.tsv.0").is_file()


def test_the_scripts_are_the_steps(root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": ""}
    steps = {"download_data": "download", "extract_coco_image": "extract", "merge_coco_image": "merge"}
    steps |= {"convert_coco_lmdb": "convert", "extract_captions": "captions"}
    assert {path.stem for path in SCRIPTS.glob("*.py")} == set(steps)
    for script, step in steps.items():
        assert f'main(["volta", "{step}", *sys.argv[1:]])' in (SCRIPTS / f"{script}.py").read_text()
    command = [sys.executable, str(SCRIPTS / "merge_coco_image.py"), "--split", "train"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "extract_coco_image.py --split train --group_id 0" in done.stderr
