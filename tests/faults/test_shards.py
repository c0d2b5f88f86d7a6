"""Tar shards that are cut, damaged, hostile, lost or swapped: nothing hangs, and every lost sample is counted."""

from __future__ import annotations

import io
import json
import logging
import resource
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.common.config.cards import load_cards
from lavis_ext.common.config.check import check_file
from lavis_ext.common.config.schema import BuildInfo, Config, DatasetConfig, ProcessorConfig, ProcessorPair, run_config
from lavis_ext.common.errors import ConfigError, IntegrityError, LavisExtError, PartialError
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.datasets.builders.image_text_shards import ImageTextStream
from lavis_ext.datasets.mixture import Mixture
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.datasets.readers.shard_index import list_shards, walk
from lavis_ext.datasets.readers.shards import RawSample, ShardReader
from lavis_ext.prepare.urls.shards import ShardManifest, describe, manifest_path, publish, shard_fault
from lavis_ext.runners.data import open_datasets
from tests.support.shards import cut, ends, sample, write_manifest, write_shard, write_tar

ROOT = Path(__file__).parents[2]
VIS = ProcessorPair(train=ProcessorConfig(name="blip_image_eval", args={"image_size": 8}))


def stream_of(folder: Path, tolerance: float = 1.0, check: bool = False, **args: Any) -> ImageTextStream:
    """The shards of a folder as a data set; shuffled only where `args` ask for it."""
    declared = DatasetConfig(
        name="pairs",
        builder="image_text_shards",
        build_info=BuildInfo(storage=[str(folder)]),
        vis_processor=VIS,
        tolerance=tolerance,
        args={"shuffle_buffer": 0, **args},
    )
    stream = build_datasets(declared, BuildContext(folder, None, check))["train"]
    assert isinstance(stream, ImageTextStream)
    return stream


def faults_of(stream: ImageTextStream) -> list[str]:
    """Why each sample of a pass that fails does so."""
    found = []
    for item in stream.iterate(0, 1):
        try:
            if isinstance(item, SampleError):
                raise item
            stream.load(item, torch.Generator())
        except SampleError as error:
            found.append(error.why)
    return found


def published(folder: Path, number: int, count: int) -> Path:
    """A shard with its manifest, as `prepare` leaves it."""
    tar = write_shard(folder, number, count)
    publish(tar, tar, describe(tar, "rows"))
    return tar


# Damage


CUTS = {"mid-data": -700, "at a boundary": 0, "mid-header": 100, "end mark": None}


@pytest.mark.parametrize(
    "where", [pytest.param(one, marks=pytest.mark.fault("W01" if one == "mid-data" else "W02")) for one in CUTS]
)
def test_a_cut_shard_loses_its_end_and_nothing_else(where: str, tmp_path: Path) -> None:
    path, _ = published(tmp_path, 0, 6), published(tmp_path, 1, 2)
    places = ends(path)
    shift = CUTS[where]
    cut(path, places[-1][2] if shift is None else places[8][2] + shift)
    lost = 0 if shift is None else 3
    assert "not a whole tar" in shard_fault(path)
    assert len(faults_of(stream_of(tmp_path))) == lost and len(stream_of(tmp_path).reader) == 8
    if lost:
        with pytest.raises(PartialError) as caught:
            list(Mixture({"pairs": stream_of(tmp_path, tolerance=0.1)}, batch_size=1, num_workers=0))
        assert caught.value.exit_code == 8


@pytest.mark.fault("W02")
def test_a_shard_cut_between_picture_and_json(tmp_path: Path) -> None:
    path = published(tmp_path, 0, 3)
    cut(path, next(end for name, _, end in ends(path) if name == "000000001.jpg"))
    assert len(faults_of(stream_of(tmp_path))) == 2 and shard_fault(path)


@pytest.mark.fault("W03")
@pytest.mark.parametrize("lacking", ["jpg", "json"])
def test_half_a_sample_is_counted_and_never_given(lacking: str, tmp_path: Path) -> None:
    half = [member for member in sample(1) if not member[0].endswith(lacking)]
    write_tar(tmp_path / "00000.tar", [*sample(0), *half, *sample(2)])
    stream = stream_of(tmp_path)
    assert len(faults_of(stream)) == 1 and len(stream.reader) == 3
    given = [item.entry.key for item in stream.iterate(0, 1) if isinstance(item, RawSample)]
    assert given == ["000000000", "000000002"]
    assert describe(tmp_path / "00000.tar", "").samples == 2


HARM: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda data: bytes(len(data)),
    "a bit": lambda data: data[:40] + bytes([data[40] ^ 4]) + data[41:],
    "another's": lambda data: data[::-1],
}


@pytest.mark.fault("H52")
@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("kind", ["jpg", "json", "txt"])
def test_bytes_changed_in_the_middle_are_found_on_request(harm: str, kind: str, tmp_path: Path) -> None:
    path = published(tmp_path, 0, 4)
    with tarfile.open(path) as archive:
        member = archive.getmember(f"000000002.{kind}")
    data = bytearray(path.read_bytes())
    place = slice(member.offset_data, member.offset_data + member.size)
    data[place] = HARM[harm](bytes(data[place])) if member.size > 40 else bytes(member.size)
    path.write_bytes(data)
    stream = stream_of(tmp_path, check=True)
    assert faults_of(stream) == ["sample is not what its shard's manifest says"]
    assert [item.entry.key for item in stream.iterate(0, 1) if item.entry.crc][2] == "000000002"  # type: ignore[union-attr]
    assert "sha256" in shard_fault(path)


@pytest.mark.fault("H52")
def test_the_run_file_asks_for_it_and_manifests_must_say(tmp_path: Path) -> None:
    declared = stream_of(published(tmp_path, 0, 2).parent).config
    run, datasets = run_config("captioning", check_shards=True), {"pairs": declared}
    config = Config(run=run, datasets=datasets, model=None, cache_root=str(tmp_path))
    opened = open_datasets(config, ["train"])["pairs"]["train"]
    assert isinstance(opened, ImageTextStream) and opened.reader.check and faults_of(opened) == []
    old = {k: v for k, v in asdict(describe(tmp_path / "00000.tar", "rows")).items() if k != "crcs"}
    manifest_path(tmp_path / "00000.tar").write_text(json.dumps(old))
    assert faults_of(stream_of(tmp_path)) == [] and shard_fault(tmp_path / "00000.tar") == "", "of an older version"
    with pytest.raises(ConfigError) as caught:
        len(stream_of(tmp_path, check=True).reader)
    assert caught.value.exit_code == 3


# Hostile headers and manifests


def header(size: bytes, kind: bytes = b"0", name: bytes = b"00001.jpg") -> bytes:
    """A header whose size field holds these bytes, its checksum right."""
    block = bytearray(tarfile.TarInfo(name.decode()).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157], block[148:156] = size.ljust(12, b"\0"), kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


HEADERS = {
    "octal": header(b"-0000001000"),
    "base 256": header(b"\xff" + b"\xff" * 9 + b"\xfc\x00"),
    "least": header(b"\xff" + b"\x00" * 11),
    "long name": header(b"-0000002000", b"L"),
    "long link": header(b"-0000002000", b"K"),
    "pax": header(b"-0000002000", b"x"),
    "sparse": header(b"-0000002000", b"S"),
    "sparse, to itself": header(b"-0000001000", b"S"),
    "sparse by pax, to itself": header(b"0000000025", b"x")
    + b"21 GNU.sparse.size=5\n".ljust(512, b"\0")
    + header(b"-0000003000"),
    "pax and sparse": header(b"0000000051", b"x")
    + b"14 size=-1536\n21 GNU.sparse.size=5\n".ljust(512, b"\0")
    + header(b"0"),
    "folder": header(b"-0000002000", b"5"),
    "huge": header(b"\x80" + b"\x7f" * 11),
    "many long names": header(b"0", b"L") * 3000,
}

BOUNDED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
from pathlib import Path
from lavis_ext.common.errors import LavisExtError
from lavis_ext.datasets.readers.shards import ShardReader
from lavis_ext.prepare.archive_formats import Limits, list_tar
from lavis_ext.prepare.urls.shards import describe
for path in sorted(Path(sys.argv[1]).rglob("*.tar")):
    reader = ShardReader([path], buffer=0)
    try:
        print(path.name, sum(1 for item in reader.iterate(0, 1) if not isinstance(item, Exception)), "samples")
    except LavisExtError as error:
        print(path.name, type(error).__name__)
    for read in (lambda: describe(path, ""), lambda: list_tar(path, False, Limits())):
        try:
            read()
            print(path.name, "was read")
        except LavisExtError as error:
            assert error.exit_code in (5, 10), error
"""


@pytest.mark.fault("H15")
def test_sizes_below_zero_end_the_walk(tmp_path: Path) -> None:
    for number, block in enumerate(HEADERS.values()):
        path = write_tar(tmp_path / f"{number:05d}.tar", sample(0))
        whole, end = path.read_bytes(), ends(path)[-1][2]
        path.write_bytes(whole[:end] + block + whole)
        (tmp_path / f"{number:05d}-first.tar").write_bytes(block + whole)
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if "was read" not in line]  # the size of a folder is not used
    assert [line.split()[1] for line in lines] == ["0", "1"] * len(HEADERS)


@pytest.mark.fault("H15")
def test_a_sparse_header_without_its_map(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "00000.tar", sample(0))
    block = bytearray(header(b"0", b"S"))
    block[482] = 1  # more of its map follows
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(path.read_bytes()[: ends(path)[-1][2]] + block)
    assert walk(path)[1] and len(faults_of(stream_of(tmp_path))) == 1


@pytest.mark.fault("H16")
@pytest.mark.parametrize("count", [3_000_000_000, 10**400, 2_000_000])
@pytest.mark.parametrize("size", [None, 1 << 50])
@pytest.mark.parametrize("name", ["00000.manifest.json", "00000_stats.json"])
def test_billions_of_declared_samples_are_not_believed(
    count: int, size: int | None, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shard(tmp_path, 0, 3)
    (tmp_path / name).write_text(
        json.dumps({"samples": count, "successes": count, **({"bytes": size} if size else {})})
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stream = stream_of(tmp_path)
    assert faults_of(stream) == [] and len(stream.reader) == 3 and "cannot hold" in caplog.text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB"


@pytest.mark.fault("H35")
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[]", '"x"', "\0", '{"samples": "3"}', "1" * 9999])
def test_a_manifest_that_is_none(text: str, tmp_path: Path) -> None:
    tar = published(tmp_path, 0, 3)
    manifest_path(tar).write_text(text)
    (tmp_path / "00000_stats.json").write_text(text)
    assert ShardManifest.read(tar) is None and shard_fault(tar) == "has no manifest"
    assert faults_of(stream_of(tmp_path)) == [] and len(stream_of(tmp_path).reader) == 3


# What is there


@pytest.mark.fault("W09")
def test_gaps_are_named_and_nothing_is_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (0, 1, 4, 12):
        write_shard(tmp_path / "s", number, 1)
    assert len(list_shards(["s"], tmp_path, "x")) == 4
    assert "00002–00003, 00005–00011" in caplog.text
    for pattern in ("none/*.tar", "s/9*.tar", "s/{00000..00003}.tar"):
        with pytest.raises(ConfigError) as caught:
            list_shards([pattern], tmp_path, "x")
        assert caught.value.exit_code == 3


def test_what_is_in_shards_without_samples_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", [("s0.input.jpg", b"x"), ("s0.outputs.txt", b"y")])
    with pytest.raises(PartialError, match=r"\.input\.jpg, \.outputs\.txt"):
        len(stream_of(tmp_path).reader)


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tgz", "0.tar"])
def test_compressed_shards_are_called_so(name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / name, "w:gz") as archive:
        for member, data in sample(0):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    stream = pytest.raises((ConfigError, PartialError)) if name != "0.tar" else None
    if stream is None:
        assert "compressed" in faults_of(stream_of(tmp_path))[0]
        return
    with stream as caught:
        stream_of(tmp_path / name)
    assert "compressed" in str(caught.value)


@pytest.mark.fault("W08")
def test_shards_of_one_name_in_two_data_sets_are_two(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", 0, 2, caption="of a")
    write_shard(tmp_path / "b", 0, 2, caption="of b")
    streams = {name: stream_of(tmp_path / name) for name in "ab"}
    pairs = [(name, item.record()["caption"]) for name in "abab" for item in streams[name].iterate(0, 1)]  # type: ignore[union-attr]
    assert set(pairs) == {("a", "of a"), ("b", "of b")}


# Order


def keys(stream: ImageTextStream, rank: int, world: int, state: Any = None) -> list[str]:
    return [item.name for item in stream.iterate(rank, world, state)]  # type: ignore[union-attr]


@pytest.mark.fault("W10")
@pytest.mark.parametrize("workers", [0, 3])
def test_fewer_shards_than_workers_times_ranks(workers: int, tmp_path: Path) -> None:
    write_shard(tmp_path, 0, 5)
    stream = stream_of(tmp_path, shuffle_buffer=4)
    parts = [keys(stream, rank, 4) for rank in range(4)]
    assert sorted(name for part in parts for name in part) == sorted(keys(stream, 0, 1)) and all(parts)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=workers)
    assert len({sample["instance_id"] for sample in loader}) == 5
    with pytest.raises(ConfigError, match="use fewer ranks"):
        Mixture({"pairs": stream}, batch_size=1, world=6, rank=5, num_workers=0)


@pytest.mark.fault("W12")
@pytest.mark.parametrize("taken", [0, 1, 7, 12])
def test_a_resume_in_mid_epoch_goes_on_at_the_next_sample(taken: int, tmp_path: Path) -> None:
    for number in range(3):
        write_shard(tmp_path, number, 8)
    for rank in range(2):
        whole = keys(stream_of(tmp_path, shuffle_buffer=5), rank, 2)
        stream = stream_of(tmp_path, shuffle_buffer=5)
        half = stream.iterate(rank, 2)
        before = [next(half).name for _ in range(taken)]  # type: ignore[union-attr]
        state = json.loads(json.dumps(stream.state_dict()))
        after = keys(stream_of(tmp_path, shuffle_buffer=5), rank, 2, state)
        assert before + after == whole or (taken == 12 and before == whole)
    assert len(set(keys(stream, 0, 2) + keys(stream, 1, 2))) == 24


@pytest.mark.fault("H48")
@pytest.mark.parametrize(("world", "batch", "total"), [(2, 50, 602), (4, 16, 130), (3, 7, 100), (1, 8, 20)])
def test_an_epoch_repeats_less_than_a_batch_of_each_rank(world: int, batch: int, total: int, tmp_path: Path) -> None:
    write_shard(tmp_path, 0, total)
    write_manifest(tmp_path / "00000.tar", total)
    stream = stream_of(tmp_path)
    for drop_last in (False, True):
        seen: Counter[str] = Counter()
        for rank in range(world):
            feed = Mixture({"p": stream}, batch_size=batch, rank=rank, world=world, drop_last=drop_last, num_workers=0)
            for given in feed:
                seen.update(given["instance_id"])
        repeated, left = sum(seen.values()) - len(seen), total - len(seen)
        assert repeated < batch * world and left < batch * world
        assert (repeated == 0) if drop_last else (left < world)
    rows = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert "less than one batch of each process" in rows


@pytest.mark.fault("H48")
@pytest.mark.parametrize("weights", [None, {"p": 1.0}])
@pytest.mark.parametrize(
    ("world", "batch", "total"),
    [(2, 50, 602), (4, 16, 130), (3, 7, 100), (1, 8, 20), (2, 5, 21), (3, 2, 19), (2, 1, 8)],
)
def test_an_exact_epoch_has_each_sample_once(
    world: int, batch: int, total: int, weights: dict[str, float] | None, tmp_path: Path
) -> None:
    """With equally many batches on every rank, epoch after epoch, and also where it is resumed in between."""
    write_shard(tmp_path, 0, total)
    write_manifest(tmp_path / "00000.tar", total)
    made = []
    for rank in range(world):
        share = {"batch_size": batch, "rank": rank, "world": world, "num_workers": 0, "drop_last": True}

        def feed(share: dict[str, Any] = share) -> Mixture:
            return Mixture({"p": stream_of(tmp_path, exact=True)}, weights, **share)

        whole = feed()
        batches = [[given["instance_id"] for given in whole] for _ in range(2)]
        assert all(0 < len(ids) <= batch for epoch in batches for ids in epoch) and len(whole) == len(batches[0])
        half = feed()
        taken = [given["instance_id"] for given in islice(half, len(half) - 1)]
        rest = feed()
        rest.load_state_dict(json.loads(json.dumps(half.state_dict())))
        assert [taken + [given["instance_id"] for given in rest], [given["instance_id"] for given in rest]] == batches
        made.append(batches)
    for epoch in range(2):
        assert len({len(batches[epoch]) for batches in made}) == 1
        seen = Counter(one for batches in made for ids in batches[epoch] for one in ids)
        assert len(seen) == total and set(seen.values()) == {1}


@pytest.mark.fault("H48")
def test_an_exact_epoch_that_cannot_be_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, 9)
    with pytest.raises(ConfigError):
        Mixture({"p": stream_of(tmp_path, exact=True)}, batch_size=1, world=2, num_workers=0)
    with pytest.raises(ConfigError):
        feed = Mixture({"p": stream_of(tmp_path)}, batch_size=2, num_workers=0)
        feed.load_state_dict(Mixture({"p": stream_of(tmp_path, exact=True)}, batch_size=2).state_dict())
    card = tmp_path / "c.yaml"
    body = (
        "datasets:\n  laion_coco:\n    builder: image_text_shards\n    args:\n      exact: true\n      epoch_size: 5\n"
    )
    card.write_text(body)
    assert [problem.where.rpartition(" ")[2] for problem in check_file(card)] == ["datasets.laion_coco.args.exact"]


@pytest.mark.fault("H49")
def test_plain_shards_of_img2dataset_have_their_one_caption(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Beside shards with scored captions: told apart sample by sample, said once."""
    scored = {"all_captions": ["worse", "better"], "all_similarities": [0.1, 0.9]}
    write_shard(tmp_path / "laion_coco", 0, 2, caption="plain words")
    write_shard(tmp_path / "laion_coco", 1, 2, caption="plain words", **scored)
    declared = replace(load_cards().dataset("laion_coco"), text_processor=ProcessorPair(), vis_processor=VIS)
    declared = replace(declared, args={**declared.args, "prefix_split": False, "shuffle_buffer": 0})
    stream = build_datasets(declared, BuildContext(tmp_path))["train"]
    assert isinstance(stream, ImageTextStream)
    with caplog.at_level(logging.WARNING):
        texts = [stream.load(item, torch.Generator())["text_input"] for item in stream.iterate(0, 1)]  # type: ignore[arg-type]
    assert texts == ["plain words", "plain words", "better", "better"]
    assert caplog.text.count("has no 'all_captions'") == 1
    write_tar(tmp_path / "laion_coco" / "00000.tar", sample(1, {"key": "1"}))
    write_tar(tmp_path / "laion_coco" / "00001.tar", sample(2, {"all_captions": "no list", "all_similarities": [1]}))
    stream = build_datasets(declared, BuildContext(tmp_path))["train"]
    assert faults_of(stream) == [  # type: ignore[arg-type]
        "json has no caption",
        "captions and scores are not two lists of one length",
    ]


@pytest.mark.fault("W02")
def test_a_manifest_of_another_shard_is_an_error(tmp_path: Path) -> None:
    tar = write_shard(tmp_path, 0, 4)
    write_manifest(tar, 3)
    with pytest.raises(IntegrityError):
        list(ShardReader([tar]).iterate(0, 1))
    assert isinstance(shard_fault(tar), str) and LavisExtError.exit_code == 1
