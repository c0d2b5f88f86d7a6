"""`lavis-ext pack`: a data set becomes shards, to the same bytes after a kill, and is read back with equal samples."""

import io
import itertools
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.cli import main
from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.config.schema import BuildInfo, DatasetConfig, ProcessorConfig, ProcessorPair
from lavis_ext.common.errors import IntegrityError
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.datasets.pack import PackOptions, ShardDigests, Target, _header, pack
from lavis_ext.datasets.readers.images import PositionalFile
from lavis_ext.datasets.readers.shard_index import read_index, sample_crc
from lavis_ext.prepare.urls.shards import BLOCK, ShardManifest, describe, shard_fault
from tests.support import families
from tests.support.buckets import aim, aim_gcs, fill_bucket, gcs_server, moto_server
from tests.support.server import payload, wait_until

VIS = ProcessorPair(train=ProcessorConfig(name="blip_image_eval", args={"image_size": 24}))
TEXT = ProcessorPair(train=ProcessorConfig(name="blip_caption"))
SETS: dict[str, Callable[[Path], None]] = {
    "coco_caption": families.coco_captions, "coco_vqa": families.vqav2, "vg_vqa": families.vg,
    "gqa": families.gqa_lavis, "snli_ve": families.snli_ve, "aok_vqa": families.aokvqa,
    "sbu_caption": families.sbu, "flickr30k": families.flickr30k,
}  # fmt: skip


def declared(name: str) -> DatasetConfig:
    """The declaration with small pictures, and without what is drawn at random."""
    args = {key: value for key, value in load_cards().dataset(name).args.items() if key != "prefix_split"}
    return replace(load_cards().dataset(name), vis_processor=VIS, text_processor=TEXT, args=args)


@given(st.from_regex(r"[0-9]{9}\.[a-z]{3,4}", fullmatch=True), st.integers(0, 8**11 - 1))
def test_a_header_is_tarfile_s(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    assert _header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


@given(st.lists(st.integers(0, 3 * BLOCK // 2), min_size=1, max_size=4), st.booleans())
@settings(max_examples=20, deadline=None)
def test_digests_of_one_pass_are_those_of_each_sample(sizes: list[int], mixed: bool) -> None:
    """Samples that lie over the ends of blocks, one after the other or mixed."""
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "0.tar"
        members = [(f"{n}.{kind}", size) for kind in ("jpg", "json") for n, size in enumerate(sizes)]
        with tarfile.open(tar, "w") as archive:
            for name, size in members if mixed else sorted(members):
                info = tarfile.TarInfo(name)
                info.size = size
                archive.addfile(info, io.BytesIO(payload(size)))
        found = describe(tar, "x")
        entries = read_index(tar, ("image", "json")).entries
        assert found.crcs == "".join(sample_crc(PositionalFile(tar), entry.members) for entry in entries)
        assert found.sha256 == sha256(tar.read_bytes()).hexdigest() and found.bytes == tar.stat().st_size


def test_a_manifest_made_behind_the_writer_is_that_of_the_finished_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families.coco_captions(tmp_path)
    for batch in (1, 3000, 1 << 20):  # a batch a sample, several of some samples, one
        monkeypatch.setattr("lavis_ext.datasets.pack.BATCH", batch)
        out = tmp_path / f"out{batch}"
        pack(declared("coco_caption"), str(out), tmp_path, PackOptions(samples_per_shard=5), lambda _: None)
        for tar in out.glob("*.tar"):
            found = ShardManifest.read(tar)
            assert found is not None and found == describe(tar, found.input_hash)
    with ShardDigests(tar) as behind, pytest.raises(IntegrityError):
        behind.follow(tar.stat().st_size + 1, [])
        behind.manifest("0", "")
    assert len({(tmp_path / f"out{batch}/00000.tar").read_bytes() for batch in (1, 3000, 1 << 20)}) == 1


def back(out: str, root: Path) -> list[dict[str, Any]]:
    config = DatasetConfig(
        name="back", builder="image_text_shards", build_info=BuildInfo(storage=[out]), vis_processor=VIS,
        text_processor=TEXT, args={"sample_key": "sample", "shuffle_buffer": 0},
    )  # fmt: skip
    stream = build_datasets(config, BuildContext(root, check_shards=True))["train"]
    return [stream.load(item, torch.Generator()) for item in stream.iterate(0, 1)]  # type: ignore[union-attr]


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.parametrize("name", SETS)
def test_samples_are_equal_when_they_are_read_back(name: str, tmp_path: Path) -> None:
    SETS[name](tmp_path)
    config = declared(name)
    report = pack(config, str(tmp_path / "out"), tmp_path, PackOptions(samples_per_shard=4), lambda _: None)
    there = build_datasets(config, BuildContext(tmp_path, ["train"]))["train"]
    found = back(str(tmp_path / "out"), tmp_path)
    assert report.samples == len(found) == len(there) and report.lost == 0  # type: ignore[arg-type]
    for index, sample in enumerate(found):
        wanted = there.load(index, torch.Generator().manual_seed(index))  # type: ignore[union-attr]
        assert sample.keys() == wanted.keys() and all(same(sample[key], wanted[key]) for key in wanted)


def test_pictures_are_copied_and_encoded_anew_only_on_request(tmp_path: Path) -> None:
    families.coco_captions(tmp_path)
    config = declared("coco_caption")
    pack(config, str(tmp_path / "out"), tmp_path, PackOptions(), lambda _: None)
    lying = {path.read_bytes() for path in (tmp_path / "coco/images/train2014").iterdir()}
    with tarfile.open(tmp_path / "out/00000.tar") as archive:
        members = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]
    assert {data for name, data in members.items() if name.endswith("jpg")} == lying
    assert json.loads(members["000000000.json"])["caption"] == "A thing, 0."
    pack(config, str(tmp_path / "small"), tmp_path, PackOptions(encode="webp", shorter_side=12), lambda _: None)
    with tarfile.open(tmp_path / "small/00000.tar") as archive:
        assert [one.name.partition(".")[2] for one in archive][:2] == ["webp", "json"]


def test_what_cannot_be_packed_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    families.coco_captions(tmp_path)
    (tmp_path / "coco/images" / families.coco_name("train2014", 1)).unlink()
    words = ["pack", "coco_caption", str(tmp_path / "out"), "--options", f"env.cache_root={tmp_path}", "--json"]
    assert main(words) == 8
    account = json.loads((tmp_path / "out/pack.json").read_text())
    assert (account["samples"], account["lost"]) == (4, 2)
    assert main(words) == 8 and json.loads((tmp_path / "out/pack.json").read_text()) == account
    assert main(["pack", "nlvr", str(tmp_path / "o"), "--options", f"env.cache_root={tmp_path}"]) == 8
    families.nlvr(tmp_path)
    assert main(["pack", "nlvr", str(tmp_path / "o"), "--options", f"env.cache_root={tmp_path}"]) == 3
    assert main(["pack", "coco_caption", "https://example.org/x"]) == 2
    assert main(["pack", "coco_caption", str(tmp_path / "o"), "--samples-per-shard", "0"]) == 2


def test_shards_of_others_are_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`pack` had put its own in the place of a folder's `00000.tar`, whoever had made that."""
    families.coco_captions(tmp_path)
    families.vqav2(tmp_path)
    out = tmp_path / "out"
    words = ["pack", "coco_caption", str(out), "--options", f"env.cache_root={tmp_path}"]
    for name in ("00000.tar", "pack.json"):
        out.mkdir(exist_ok=True)
        (out / name).write_bytes(b"somebody's")
        assert main(words) == 2 and name in capsys.readouterr().err
        assert (out / name).read_bytes() == b"somebody's"
        (out / name).unlink()
    assert main(words) == 0
    whole = files_of(out)
    assert main(["pack", "coco_vqa", *words[2:]]) == 2 and files_of(out) == whole
    assert main(words) == 0


def test_a_row_or_a_byte_that_changed_makes_its_shard_anew(tmp_path: Path) -> None:
    families.coco_captions(tmp_path)
    config, options = declared("coco_caption"), PackOptions(samples_per_shard=2)
    out = tmp_path / "out"
    assert pack(config, str(out), tmp_path, options, lambda _: None).made == 3
    whole = files_of(out)
    assert pack(config, str(out), tmp_path, options, lambda _: None).made == 0
    data = bytearray((out / "00001.tar").read_bytes())
    data[700] ^= 1
    (out / "00001.tar").write_bytes(data)
    assert shard_fault(out / "00001.tar")
    assert pack(config, str(out), tmp_path, replace(options, deep=True), lambda _: None).made == 1
    assert files_of(out) == whole
    rows = json.loads((tmp_path / "coco/annotations/coco_karpathy_train.json").read_text())
    rows[5]["caption"] = "Another."
    (tmp_path / "coco/annotations/coco_karpathy_train.json").write_text(json.dumps(rows))
    assert pack(config, str(out), tmp_path, options, lambda _: None).made == 1


def test_killed_anywhere_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    families.coco_captions(tmp_path)
    rows = json.loads((tmp_path / "coco/annotations/coco_karpathy_train.json").read_text()) * 40
    (tmp_path / "coco/annotations/coco_karpathy_train.json").write_text(json.dumps(rows))
    words = ["pack", "coco_caption", str(tmp_path / "out"), "--samples-per-shard", "10", "--quiet"]
    words += ["--options", f"env.cache_root={tmp_path}"]
    pack(
        load_cards().dataset("coco_caption"),
        str(tmp_path / "whole"),
        tmp_path,
        PackOptions(samples_per_shard=10),
        print,
    )
    process = subprocess.Popen([sys.executable, "-m", "lavis_ext", *words], stdout=subprocess.DEVNULL)
    assert wait_until(lambda: process.poll() is not None or len(list((tmp_path / "out").glob("*.tar"))) >= 5, 120)
    process.kill()
    process.wait()
    (tmp_path / "out/.00002.manifest.json.7-7.tmp").write_text("{")
    assert main(words) == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.fixture(scope="module")
def stores() -> Iterator[dict[str, str]]:
    with moto_server() as s3, gcs_server() as gs:
        yield {"s3": s3, "gs": gs}


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_to_a_bucket_and_back(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stores: dict[str, str]
) -> None:
    endpoint = stores[scheme]
    aim(monkeypatch, endpoint) if scheme == "s3" else aim_gcs(monkeypatch, endpoint, tmp_path)
    fill_bucket(endpoint, bucket := f"packed{scheme}", {})
    place = f"{scheme}://{bucket}"
    families.vqav2(tmp_path)
    config, options = declared("coco_vqa"), PackOptions(samples_per_shard=2)
    assert pack(config, f"{place}/vqa", tmp_path, options, lambda _: None).made == 3
    assert pack(config, f"{place}/vqa", tmp_path, options, lambda _: None).made == 0
    found = back(f"{place}/vqa/", tmp_path)
    pack(config, str(tmp_path / "out"), tmp_path, options, lambda _: None)
    for one, other in itertools.zip_longest(found, back(str(tmp_path / "out"), tmp_path)):
        assert one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    left = [path for path in (tmp_path / ".lavis_ext/pack").rglob("*") if path.is_file()]
    assert left == []
    fill_bucket(endpoint, bucket, {"vqa/00001.tar": b"x"})
    assert pack(config, f"{place}/vqa", tmp_path, options, lambda _: None).made == 1
    monkeypatch.setattr(Target, "_hash", lambda *_: "0" * 64)
    with pytest.raises(IntegrityError):
        pack(config, f"{place}/other", tmp_path, options, lambda _: None)
