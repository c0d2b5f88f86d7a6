"""From a mirror's bytes to samples: archives of several cards, members of archives, and the form that a mirror has."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.errors import NetworkError
from lavis_ext.datasets.builders import load_dataset
from lavis_ext.fetch.mirrors import mirror_path
from lavis_ext.prepare import PrepareOptions, prepare, status
from lavis_ext.prepare.selection import select
from tests.support.families import gqa, gqa_lavis, minigpt4, vqav2, vqav2_lavis

CARDS = load_cards()


def packed(root: Path, names: Iterable[str], below: str) -> bytes:
    """A zip of files of `root`, named from `below` on."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(root / name, str(Path(name).relative_to(below)))
    return buffer.getvalue()


def files_of(root: Path, folder: str) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in (root / folder).rglob("*") if path.is_file())


def write_mirror(base: Path, contents: dict[str, bytes]) -> str:
    """A subset mirror of these URLs."""
    files = {}
    for url, data in contents.items():
        path = base / mirror_path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        files[mirror_path(url)] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (base / "manifest.json").write_text(json.dumps({"format": 1, "equivalence": "subset", "files": files}))
    return str(base)


def url(reference: str, name: str = "coco_caption") -> str:
    return CARDS.artifact(reference, CARDS.dataset(name)).url


def coco_archives(world: Path) -> dict[str, bytes]:
    """The three archives of images."""
    subsets = ("train2014", "val2014", "test2015")
    return {url(s): packed(world, files_of(world, f"coco/images/{s}"), "coco/images") for s in subsets}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache root of the test."""
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path / "data"))
    return tmp_path / "data"


def official_mirror(tmp_path: Path) -> str:
    vqav2(tmp_path / "world")
    contents = coco_archives(tmp_path / "world")
    folder = "coco/annotations"
    for kind, pattern in (
        ("questions", "v2_OpenEnded_mscoco_{}_questions.json"),
        ("annotations", "v2_mscoco_{}_annotations.json"),
    ):
        for split, subset in (("train", "train2014"), ("val", "val2014"), ("test", "test2015")):
            name = f"{folder}/{pattern.format(subset)}"
            if (tmp_path / "world" / name).is_file():
                contents[url(f"vqav2/{kind}_{split}")] = packed(tmp_path / "world", [name], folder)
    return write_mirror(tmp_path / "mirror", contents)


def lavis_mirror(tmp_path: Path) -> str:
    vqav2_lavis(tmp_path / "world")
    artifacts = CARDS.families["vqav2"].artifacts.values()
    made = {a.url: tmp_path / "world" / a.storage for a in artifacts if a.name.startswith("lavis")}
    contents = {address: path.read_bytes() for address, path in made.items()}
    return write_mirror(tmp_path / "mirror", coco_archives(tmp_path / "world") | contents)


@pytest.mark.parametrize("mirror", [official_mirror, lavis_mirror])
def test_questions_of_either_form_and_images_of_another_card(
    mirror: Callable[[Path], str], tmp_path: Path, root: Path
) -> None:
    report = prepare(["vqav2"], PrepareOptions(mirror=mirror(tmp_path)))
    assert report.exit_code == 0
    built = load_dataset("coco_vqa")
    assert {split: len(dataset) for split, dataset in built.items()} == {"train": 6, "val": 3, "test": 3}
    assert built["test"][2]["question_id"] == 230
    assert (root / "coco/images/test2015").is_dir()


def test_first_samples_of_a_joined_split(tmp_path: Path, root: Path) -> None:
    options = PrepareOptions(mirror=official_mirror(tmp_path), splits=["val"], max_samples=1)
    assert prepare(["coco_vqa"], options).exit_code == 0
    assert [p.name for p in (root / "coco/images").rglob("*.jpg")] == ["COCO_val2014_000000000011.jpg"]


def test_annotations_that_lie_in_the_archive_of_images(tmp_path: Path, root: Path) -> None:
    minigpt4(tmp_path / "world")
    data = packed(tmp_path / "world", files_of(tmp_path / "world", "cc_sbu_align"), ".")
    mirror = write_mirror(tmp_path / "mirror", {url("align", "cc_sbu_align"): data})
    assert prepare(["minigpt4"], PrepareOptions(mirror=mirror)).exit_code == 0
    sample = load_dataset("minigpt4_self_instruct_caption")["train"][2]
    assert sample["text_input"] == "The image shows a thing. It is: 4!"
    assert (root / "cc_sbu_align/filter_cap.json").is_file()


def test_an_archive_with_its_annotations_comes_whole(tmp_path: Path, root: Path) -> None:
    minigpt4(tmp_path / "world")
    data = packed(tmp_path / "world", files_of(tmp_path / "world", "cc_sbu_align"), ".")
    mirror = write_mirror(tmp_path / "mirror", {url("align", "cc_sbu_align"): data})
    assert prepare(["cc_sbu_align"], PrepareOptions(mirror=mirror, max_samples=1)).exit_code == 0
    assert (root / "cc_sbu_align/filter_cap.json").is_file()
    assert len(list((root / "cc_sbu_align/image").iterdir())) == 3


def test_drive_copy_serves_where_a_mirror_has_only_that(tmp_path: Path, root: Path) -> None:
    minigpt4(tmp_path / "world", flat=True)
    data = packed(tmp_path / "world", files_of(tmp_path / "world", "cc_sbu_align"), ".")
    [repacked] = [m.url for m in CARDS.families["minigpt4"].artifacts["align"].mirrors if m.equivalence == "repacked"]
    mirror = write_mirror(tmp_path / "mirror", {repacked: data})
    assert prepare(["cc_sbu_align"], PrepareOptions(mirror=mirror)).exit_code == 0
    assert len(load_dataset("cc_sbu_align")["train"]) == 3


def test_what_is_on_request_must_be_named(tmp_path: Path, root: Path) -> None:
    names = {request.artifact.name for request in select(CARDS, ["gqa"], None).requests}
    assert names == {"images", "train_balanced", "val_balanced", "testdev_balanced", "test_balanced"}
    asked = {request.artifact.name for request in select(CARDS, ["gqa[all]"], ["train"]).requests}
    assert asked == {"images", "train_all_0", "val_all"}
    assert "images_tar" not in {request.artifact.name for request in select(CARDS, ["sbu_caption"], None).requests}


def test_gqa_from_a_mirror(tmp_path: Path, root: Path) -> None:
    gqa_lavis(tmp_path / "world")
    world = tmp_path / "world"
    contents = {url("images", "gqa"): packed(world, files_of(world, "gqa/images"), "gqa")}
    for name in ("train_balanced", "val_balanced", "testdev_balanced", "test_balanced"):
        contents[url(name, "gqa")] = (world / f"gqa/annotations/{name}_questions.json").read_bytes()
    assert prepare(["gqa"], PrepareOptions(mirror=write_mirror(tmp_path / "mirror", contents))).exit_code == 0
    assert load_dataset("gqa")["test"][0]["answer"] is None


def test_gqa_from_the_official_archive_of_questions(tmp_path: Path, root: Path) -> None:
    gqa(tmp_path / "world")
    world = tmp_path / "world"
    questions = packed(world, files_of(world, "gqa/annotations"), "gqa/annotations")
    images = packed(world, files_of(world, "gqa/images"), "gqa")
    mirror = write_mirror(tmp_path / "mirror", {url("images", "gqa"): images, url("questions", "gqa"): questions})
    assert prepare(["gqa"], PrepareOptions(mirror=mirror)).exit_code == 0
    assert load_dataset("gqa")["val"][1]["answer"] == "yes"


def test_a_mirror_that_has_neither_form_is_named(tmp_path: Path, root: Path) -> None:
    mirror = write_mirror(tmp_path / "mirror", {"https://h/other": b"x"})
    with pytest.raises(NetworkError, match="lists nothing"):
        prepare(["vqav2"], PrepareOptions(mirror=mirror))


def test_status_knows_the_form_that_is_there(tmp_path: Path, root: Path) -> None:
    prepare(["coco_vqa"], PrepareOptions(mirror=lavis_mirror(tmp_path)))
    states = {(one.dataset, one.split): one.state for one in status(["coco_vqa"])}
    assert set(states.values()) == {"verified (subset)"}


def test_family_of_the_images_has_their_questions_too(tmp_path: Path, root: Path) -> None:
    titles = [request.title for request in select(CARDS, ["coco"], ["test"]).requests]
    assert titles == ["coco/karpathy_test", "vqav2/questions_test", "coco/val2014", "coco/test2015"]
    assert CARDS.card_of("coco_vqa").family == "vqav2"
    assert [one.dataset.name for one in select(CARDS, ["vqav2"], ["test"]).chosen] == ["coco_vqa"]
