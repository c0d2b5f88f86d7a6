"""Files that others made, or that were damaged, end in an error of ours, in bounded time and memory; rows are kept."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lavis_ext.cli import main, tools
from lavis_ext.common.errors import IntegrityError, LavisExtError, UnsafeError
from lavis_ext.common.files import decode_json
from lavis_ext.common.tensors import read_torch
from lavis_ext.datasets.readers.annotations import Annotations
from lavis_ext.datasets.readers.images import ImageStore
from lavis_ext.datasets.readers.packed import PackedImages, packed_rows
from lavis_ext.features.detectors.weights import read_weights
from lavis_ext.features.formats.restricted import load_plain
from lavis_ext.features.imports import import_features
from lavis_ext.features.store import FeatureStore
from lavis_ext.models.weights import read_checkpoint
from lavis_ext.prepare import status, verify
from tests.faults.fuzz import Slow, alarm
from tests.support.features import b64, make_images, oscar_tsv, volta_lmdb
from tests.support.processes import exit_code
from tests.support.server import Server
from tests.support.toyfamily import Family, pictures, tree, zip_bytes

DEEP = "[" * 100_000
COMMAND = (sys.executable, "-m", "lavis_ext")


# Pickles

MEMO = [
    b"\x80\x02Kr" + b"r" + struct.pack("<I", 1 << 28) + b".",
    b"\x80\x02Kqp268435456\n.",
    b"\x80\x02]" + b"r\xff\xff\xff\x7f.",
]
HUGE = [b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 33) + b"x."]


@pytest.mark.fault("H17")
def test_a_pickle_asks_for_no_more_memory_than_it_has_bytes() -> None:
    code = """
import resource, sys
from lavis_ext.common.errors import IntegrityError
from lavis_ext.features.formats.restricted import load_plain
for data in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load_plain(bytes.fromhex(data), "x")
    except IntegrityError:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    words = [sys.executable, "-c", code, *(data.hex() for data in (*MEMO, *HUGE))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    peaks = [int(line) for line in done.stdout.split()]
    assert len(peaks) == len(MEMO) + len(HUGE) and max(peaks) < 32 << 10  # KiB


NESTED = b")" + b"\x85" * 300_000  # twice what ends a process whose stack has 8 MiB
KEYS = {
    "a key": b"}" + NESTED + b"Ns.",
    "in a set": b"\x8f(" + NESTED + b"\x90.",
    "in a frozen set": b"(" + NESTED + b"\x91.",
    "through a mark": b"}" + b"(" * 300_000 + b"t" * 300_000 + b"Ns.",
    "through the memo": b"}" + b")q\x000" + b"h\x00\x85q\x000" * 300_000 + b"h\x00Ns.",
    "past others": b"}" + b")" + b"N0N\x86" * 300_000 + b"Ns.",
    "doubled": b"}" + b")" + b"2\x86" * 300_000 + b"Ns.",
}


@pytest.mark.fault("H17")
@pytest.mark.parametrize("kind", KEYS)
def test_tuples_in_one_another_do_not_end_the_process(kind: str) -> None:
    assert exit_code(load_plain, b"\x80\x04" + KEYS[kind], "x") == 10


@pytest.mark.fault("H17")
@pytest.mark.parametrize(("form", "kind"), zip(cycle(["zip", "old"]), KEYS, strict=False))
def test_tuples_in_one_another_in_a_checkpoint(kind: str, form: str, tmp_path: Path) -> None:
    path, data = tmp_path / "x.pth", b"\x80\x02" + KEYS[kind]
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", data)
            archive.writestr("x/version", "3\n")
    else:
        heads = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(head, 2) for head in heads) + data)
    assert exit_code(read_torch, path) == 5


@pytest.mark.fault("H17")
def test_a_thousand_arrays_are_read_whose_tuples_are_many() -> None:
    value = {str(n): (np.arange(3), (n, (n, "x"))) for n in range(1000)}
    for protocol in range(6):
        found = load_plain(pickle.dumps(value, protocol), "x")
        assert found["7"][1] == (7, (7, "x")) and (found["999"][0] == np.arange(3)).all()


@pytest.mark.fault("H17")
def test_a_memo_of_a_real_pickle_is_read() -> None:
    shared = ["x" * 300]
    value = {"a": [shared, shared, {str(n): n for n in range(600)}], "b": np.arange(6, dtype="<f4")}
    for protocol in range(6):
        found = load_plain(pickle.dumps(value, protocol), "x")
        assert found["a"] == value["a"] and (found["b"] == value["b"]).all()


@pytest.mark.fault("H17")
def test_a_pickle_in_an_lmdb_a_detector_and_a_label_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folder = volta_lmdb(tmp_path / "a.lmdb", make_images(1), spoil=MEMO[0])
    assert main(["features", "import", str(folder), str(tmp_path / "s"), "--quiet"]) == 5
    (tmp_path / "d.pkl").write_bytes(MEMO[0])
    with pytest.raises(IntegrityError):
        read_weights(tmp_path / "d.pkl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB
    assert "d.pkl" not in capsys.readouterr().err


# What is no file, or has no end

SPECIAL = {
    "zero": lambda folder: Path("/dev/zero"),
    "kmsg": lambda folder: Path("/proc/kmsg"),  # says that it is a file, and waits for the kernel
    "random": lambda folder: Path("/dev/urandom"),
    "pipe": lambda folder: made_pipe(folder / "pipe.yaml"),
    "folder": lambda folder: folder,
    "huge": lambda folder: made_huge(folder / "huge.yaml"),
    "nodes": lambda folder: written(folder / "nodes.yaml", b"run: [" + b"1, " * 2_000_000 + b"]"),
    "null": lambda folder: Path("/dev/null"),
}


def made_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def made_huge(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(1 << 40)
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.fault("H19")
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_has_no_end_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    path = SPECIAL[kind](tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with alarm(20):
        code = main(["check", str(path)])
    said = capsys.readouterr()
    assert code == {"folder": 2}.get(kind, 3) and "internal error" not in said.err and str(path) in said.out + said.err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10  # KiB


@pytest.mark.fault("H19")
def test_a_folder_that_is_none_of_settings_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check /` walked through every disk, and what the kernel shows as files."""
    with alarm(20):
        assert main(["check", "/"]) in (2, 3)
    monkeypatch.setattr(tools, "MOST_ENTRIES", 50)
    written(tmp_path / "a.yaml", b"run: {task: vqa}")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "closed").mkdir(mode=0)
    assert main(["check", str(tmp_path)]) == 3
    for number in range(60):
        written(tmp_path / f"{number}.jpg", b"")
    assert main(["check", str(tmp_path)]) == 2 and str(tmp_path) in capsys.readouterr().err


@pytest.mark.fault("H19")
@pytest.mark.parametrize("kind", ["zero", "pipe", "folder", "huge"])
@pytest.mark.parametrize(
    "words",
    [
        ["train", "--cfg-path", "{}"],
        ["browse", "{}"],
        ["features", "import", "{}", "{out}", "--quiet"],
        ["features", "info", "{}"],
        ["export", "{}", "{out}.pth"],
        ["runs", "{}"],
        ["import-args", "--from", "{}"],
        ["chat", "--cfg-path", "{}", "--image", "{}", "--question", "x"],
    ],
    ids=lambda words: words[0] + words[1][:3],
)
def test_every_verb_takes_a_file_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, words: list[str]
) -> None:
    if kind == "pipe" and words[0] == "import-args":
        return  # a command may come through a pipe, and is waited for
    path = SPECIAL[kind](tmp_path)
    with alarm(20):
        code = main([word.format(path, out=tmp_path / "out") for word in words])
    said = capsys.readouterr().err
    assert code in (0, 2, 3, 5, 6) and "internal error" not in said, said
    assert code != 0 or words[0] == "runs"


# JSON


@pytest.mark.fault("H35")
def test_json_of_any_depth_is_json_or_not() -> None:
    for text in (DEEP, '{"a":' * 100_000, DEEP + "]" * 100_000):
        with pytest.raises(ValueError):
            decode_json(text)
        with pytest.raises(ValueError):
            decode_json(text.encode())


SPOILT = [DEEP.encode(), b"[]", b"3", b'{"format": 1}', b"\xff\xfe", b""]


@pytest.mark.fault("H35")
@pytest.mark.parametrize("data", SPOILT, ids=["deep", "list", "number", "bare", "bytes", "empty"])
def test_bookkeeping_of_any_content_costs_work_and_nothing_else(server: Server, tmp_path: Path, data: bytes) -> None:
    family = Family(server, tmp_path / "root", train=pictures("train", 2), val=pictures("val", 2))
    assert family.prepare().exit_code == 0
    cards, before = family.cards(), tree(family.root)
    kept = [path for path in (family.root / "toy" / ".lavis_ext").rglob("*") if path.is_file()]
    for path in [*kept, *(path.with_name(f"{path.name}.owner") for path in kept[:2])]:
        path.write_bytes(data)
    status(["toy"], family.options(), cards)
    assert verify(["toy"], False, False, family.options(), cards=cards).exit_code in (0, 4, 5, 8)
    report = family.prepare()
    assert report.exit_code == 0 and tree(family.root) == before
    server.put("/manifest.json", data)
    with suppress(LavisExtError):
        family.prepare(names=("toy_caption",))


@pytest.mark.fault("H35")
@pytest.mark.parametrize("data", SPOILT, ids=["deep", "list", "number", "bare", "bytes", "empty"])
def test_a_run_s_folder_of_any_content_is_listed_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    job = tmp_path / "out" / "job"
    (job / "result" / "gallery" / "x").mkdir(parents=True)
    (job / "checkpoint_1").mkdir()
    names = ["run.json", "log.jsonl", "config.yaml", "data.json", "faults.json", "best.json", "latest.json"]
    names += ["result/gallery/x/index.json", "checkpoint_1/manifest.json", "checkpoint_1/state.json"]
    for name in names:
        (job / name).write_bytes(data)
    for words, codes in (
        (["runs", str(tmp_path / "out")], {0}),
        (["browse", str(job)], {0}),
        (["export", str(job), str(tmp_path / "x.pth")], {2, 3, 5}),
        (["chat", "--cfg-path", str(job / "config.yaml"), "--image", "x", "--checkpoint", str(job)], {2, 3, 5, 6}),
    ):
        assert main(words) in codes, words
        assert "internal error" not in capsys.readouterr().err, words


def test_nothing_else_reads_json_of_the_disk() -> None:
    """What was just written may be read as it is; all else goes through `decode_json`, or `parse_json` of a reader."""
    root = Path(__file__).parents[2] / "lavis_ext"
    lines = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in root.rglob("*.py")
        for line in path.read_text().splitlines()
        if ("json.loads(" in line or "json.load(" in line) and "json.loads(json.dumps(" not in line
    ]
    own = ("common/files.py", "datasets/readers/parse.py", "demo/")
    assert [line for line in lines if not line.startswith(own)] == []


# Annotations

ROWS: list[tuple[str, bytes]] = [
    ("a.json", b'{"images": [{"id": []}]}'),
    ("a.json", b'{"images": [{"id": [], "file_name": "a.jpg"}], "annotations": [], "info": {}}'),
    ("a.json", b'{"images": [{"id": {}, "file_name": "a.jpg"}], "annotations": [{"image_id": {}}]}'),
    ("a.json", b'{"images": {"a": 1}}'),
    ("a.json", b'{"annotations": {"a": 1}}'),
    ("a.json", b'{"annotations": {"a": {"caption": "x"}}}'),
    ("a.json", b'{"annotations": {"a": 1}, "images": [{"id": 1, "file_name": "a"}]}'),
    ("a.json", b'{"questions": 3, "info": {}}'),
    ("a.json", b'{"data": "x"}'),
    ("a.json", b'[{"qas": 3}]'),
    ("a.json", b'[{"qas": [3]}]'),
    ("a.json", b'[{"regions": {"a": 1}}]'),
    ("a.json", b'[{"identifier": 3, "sentence": 1, "left_url": 1}]'),
    ("a.json", b'[{"\\ud800": 1}]'),
    ("a.json", b"[1, 2]"),
    ("a.json", b'[{"a": ' + b"9" * 5000 + b"}]"),
    ("a.json", DEEP.encode()),
    ("a.jsonl", b'{"a": 1}\n' + DEEP.encode()),
    ("a.jsonl", b'{"a": 1}\n[1]\n'),
    ("a.csv", b"a,b\n1,2\n\0,x,y\n"),
    ("a.csv", b'a,b\n1,"2\n'),
    ("a.tsv", b"a\tb\n1\n"),
    ("a.parquet", b"PAR1PAR1"),
    ("a.parquet", b""),
    ("a.json", b"\xff\xfe[]"),
]


@pytest.mark.fault("H33")
@pytest.mark.parametrize(("name", "data"), ROWS, ids=[str(n) for n in range(len(ROWS))])
def test_annotations_of_another_form_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    path = written(tmp_path / name, data)
    with pytest.raises(IntegrityError) as caught:
        Annotations([path])
    assert str(path) in caught.value.problems[0].where


@pytest.mark.fault("H33")
def test_a_parquet_is_refused_wherever_it_is_damaged(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    whole = tmp_path / "whole.parquet"
    parquet.write_table(pa.table({"image": ["a.jpg", "b.jpg"], "url": ["http://x/a.jpg"] * 2, "n": [1, 2]}), whole)
    data, refused = whole.read_bytes(), 0
    for number, at in enumerate(range(4, len(data), 7)):
        path = written(tmp_path / f"{number}.parquet", data[:at] + b"\xff\xff\xff\x7f" + data[at + 4 :])
        try:
            Annotations([path]).column("image")
        except IntegrityError as error:
            refused += str(path) in str(error)
    assert refused > 20


@pytest.mark.fault("H33")
@pytest.mark.parametrize(
    "form", ["dictionary", "in lists", "in records", "delta", "compressed", "arrow", "runs", "views"]
)
def test_a_table_of_kilobytes_that_stands_for_more_text_than_it_can_hold_is_refused(tmp_path: Path, form: str) -> None:
    """Written with less than memory takes; nothing bounds how much more the next one says."""
    import pyarrow as pa
    from pyarrow import parquet

    rows, text = 1_000, pa.array(["x" * 400_000])
    shared: Any = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), text)
    if form == "in lists":
        shared = pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), shared)
    elif form == "in records":
        shared = pa.StructArray.from_arrays([shared], ["text"])
    elif form in ("delta", "compressed"):
        shared = shared.cast(pa.string())
    elif form == "runs":
        shared = pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), text)
    elif form == "views":
        shared = pa.ListViewArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([1] * rows, pa.int32()), text)
    table = pa.table({"image": ["a.jpg"] * rows, "caption": shared})
    path = tmp_path / ("a.arrow" if form in ("arrow", "runs", "views") else "a.parquet")
    if path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    else:
        more = {"column_encoding": {"caption": "DELTA_BYTE_ARRAY", "image": "PLAIN"}} if form == "delta" else {}
        parquet.write_table(table, path, compression="zstd", use_dictionary=form not in ("delta", "compressed"), **more)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(IntegrityError, match="stands for"):
        packed_rows(path)


@pytest.mark.parametrize("dictionary", [False, True])
def test_texts_that_stand_once_for_many_rows_are_read(tmp_path: Path, dictionary: bool) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [
        {"image": f"{n}.jpg", "a.b": f"text {n % 3}", "tags": ["x", None], "r": {"s": "y", "n": n}, "d": None}
        for n in range(300)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), path := tmp_path / "a.parquet", use_dictionary=dictionary)
    assert packed_rows(path) == rows
    picture = b"\xff\xd8\xff" + bytes(1000)
    held = pa.table({"image": pa.array([{"bytes": picture, "path": None}] * 300), "caption": ["a"] * 300})
    parquet.write_table(held, path, use_dictionary=dictionary)
    assert packed_rows(path)[299] == {"image": "a.parquet!image/299", "caption": "a"}
    assert PackedImages(path).read("image/299") == picture


def test_lists_as_names_of_pictures_are_rows_whose_samples_fail(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", b'[{"image": [3], "x": 1}, {"image": [4], "x": 2}]')
    found = Annotations([path])
    assert len(found) == 2 and found.codes("image").tolist() == [0, 1]


@pytest.mark.fault("H33")
def test_names_of_pictures_that_no_disk_can_hold_are_missing_samples(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    store = ImageStore(tmp_path / "images", [])
    for name in ("x" * 5000, "x" * 300 + "/a.jpg", "\ud800.jpg", "a\0.jpg", "/".join("ab" * 3000)):
        with pytest.raises(IntegrityError):
            store.read(name)


@pytest.mark.fault("H33")
@pytest.mark.parametrize("field", ["packed", "size", "offset"])
def test_a_zip_s_directory_that_claims_terabytes_takes_no_memory(tmp_path: Path, field: str) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zip_bytes({"a.jpg": b"x" * 50}))
    with zipfile.ZipFile(path) as archive:
        at = archive.start_dir
    data = bytearray(path.read_bytes())
    place = at + {"packed": 20, "size": 24, "offset": 42}[field]
    data[place : place + 4] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(IntegrityError):
        ImageStore(tmp_path / "none", [path]).read("a.jpg")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


# Weights


def old_form(state: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def zip_form(state: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def safe_form(state: dict[str, Any], folder: Path) -> bytes:
    save_file(state["model"], folder / "x.safetensors")
    return (folder / "x.safetensors").read_bytes()


@pytest.mark.fault("H34")
@pytest.mark.parametrize("form", ["old.pth", "zip.pth", "a.safetensors"])
def test_a_checkpoint_is_refused_wherever_it_is_damaged(tmp_path: Path, form: str) -> None:
    state = {"model": {"a.b": torch.arange(3.0), "c": torch.ones(2, 2)}}
    made = {"old.pth": old_form, "zip.pth": zip_form}
    data = made[form](state) if form in made else safe_form(state, tmp_path)
    step = max(1, len(data) // 60)
    spoilt = [data[:at] for at in range(0, len(data), step)]
    spoilt += [data[:at] + b"\xff\0\x80\x02" + data[at + 4 :] for at in range(0, len(data) - 4, step)]
    codes = []
    for number, one in enumerate(
        [*spoilt, b"\x80\x02}q\0X", b"\x80\x02", b"PK\x03\x04" + b"\0" * 30, b"\xff" * 8 + b"{}"]
    ):
        path = written(tmp_path / f"{number}-{form}", one)
        for read in (lambda p=path: read_checkpoint(str(p), "model.finetuned"), lambda p=path: read_weights(p)):  # type: ignore[misc]
            try:
                read()
            except LavisExtError as error:
                assert str(path) in str(error)
                codes.append(error.exit_code)
    assert codes.count(5) > 60 and set(codes) <= {5, 10} and codes.count(5) > 4 * codes.count(10)


@pytest.mark.fault("H34", "D08")
@pytest.mark.parametrize("form", [old_form, zip_form], ids=["old", "zip"])
def test_a_whole_pickle_that_would_run_code_is_unsafe_and_a_cut_one_is_damaged(
    tmp_path: Path, form: Callable[[dict[str, Any]], bytes]
) -> None:
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(trap),)

    whole = written(tmp_path / "a.pth", form({"model": Trap(), "x": torch.zeros(2)}))
    cut = written(tmp_path / "b.pth", whole.read_bytes()[: len(whole.read_bytes()) // 3])
    for read in (
        lambda p: read_checkpoint(str(p), "key"),
        read_weights,
        lambda p: import_features([p], tmp_path / "s"),
    ):
        with pytest.raises(UnsafeError):
            read(whole)
        with pytest.raises((IntegrityError, LavisExtError)) as caught:
            read(cut)
        assert caught.value.exit_code in (2, 5)
    assert not trap.exists()


@pytest.mark.fault("H34")
@pytest.mark.parametrize("claim", ["shape", "cut", "names"])
def test_an_hdf5_file_is_refused_where_it_is_damaged(
    tmp_path: Path, claim: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import h5py

    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("1")
        group.create_dataset(
            "features", shape=(1 << 24, 2048), dtype="f4", chunks=(1, 2048)
        )  # 128 GiB that are not there
        file.create_group("2")["features"] = np.zeros((2, 2048), "f4")
        file["3"] = 3
    if claim == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    elif claim == "names":
        data = path.read_bytes()
        path.write_bytes(data.replace(b"features", b"\xffeatures"))
    with alarm(20):
        code = main(["features", "import", str(path), str(tmp_path / "s"), "--quiet"])
    assert code in (5, 8) and "internal error" not in capsys.readouterr().err
    if claim == "shape":
        assert len(FeatureStore(tmp_path / "s")) == 1


@pytest.mark.fault("H34")
def test_a_numpy_archive_that_unpacks_to_gigabytes_is_a_row_that_fails(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    header = (
        np.lib.format.magic(1, 0)
        + b"\x76\0"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 2048), }".ljust(117)
        + b"\n"
    )
    data = bytearray(zip_bytes({"features.npy": header + b"\0" * 100}))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        at = archive.start_dir
    data[at + 24 : at + 28] = (300 << 20).to_bytes(4, "little")  # what its directory says that it unpacks to
    (folder / "1.npz").write_bytes(data)
    (folder / "2.npy").write_bytes(header + b"\0" * 100)
    np.savez(folder / "3.npz", features=np.zeros((2, 2048), "f4"))
    done = import_features([folder], tmp_path / "s")
    assert done.added == 1 and {fault.image_id for fault in done.faults} == {"1", "2"}


@pytest.mark.fault("H34")
def test_a_row_with_a_lone_surrogate_is_kept(tmp_path: Path) -> None:
    vector = b64(np.arange(2048, dtype=np.float32))
    rows = [{"rect": [1, 2, 3, 4], "class": "d\ud800g", "conf": 0.5, "feature": vector}]
    bad = json.dumps({"num_boxes": 1, "features": "\ud800" * 8})
    wrong = json.dumps([{**rows[0], "rect": [1e400, 2, 3, "\ud800"]}])
    text = f"1\t{json.dumps(rows)}\n2\t{bad}\n3\t{wrong}\n"
    path = written(tmp_path / "a.tsv", text.encode())
    done = import_features([path], tmp_path / "s")
    assert done.added == 1 and {fault.image_id for fault in done.faults} == {"2", "3"}
    label = FeatureStore(tmp_path / "s").at(0).label_text
    assert label is not None and json.loads(label)[0]["class"] == "d\ud800g"


@pytest.mark.fault("H34")
def test_a_cut_lmdb_does_not_end_the_process(tmp_path: Path) -> None:
    whole = volta_lmdb(tmp_path / "a.lmdb", make_images(3))
    data = (whole / "data.mdb").read_bytes()
    code = """
import sys
from pathlib import Path
from lavis_ext.cli import main
folder, data = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
for size in (0, 100, 4096, 8192, len(data) // 2, len(data) - 1):
    (folder / "data.mdb").write_bytes(data[:size])
    print(main(["features", "import", str(folder), f"{folder}-{size}", "--quiet"]))
"""
    kept = written(tmp_path / "whole", data)
    words = [sys.executable, "-c", code, str(whole), str(kept)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and set(done.stdout.split()) <= {"2", "5"} and len(done.stdout.split()) == 6, done
    assert "internal error" not in done.stderr


@pytest.mark.fault("H34")
def test_a_store_is_refused_where_its_index_is_damaged(tmp_path: Path) -> None:
    import_features([oscar_tsv(tmp_path / "o.tsv", make_images(3, 2054))], tmp_path / "s")
    index = tmp_path / "s" / "index.arrow"
    data = index.read_bytes()
    code = "import sys\nfrom pathlib import Path\nfrom lavis_ext.common.errors import LavisExtError\n"
    code += "from lavis_ext.features.store import FeatureStore\n"
    code += "folder, data = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()\n"
    code += "for at in range(8, len(data) - 4, 131):\n"
    code += "    (folder / 'index.arrow').write_bytes(data[:at] + b'\\xff\\xff\\xff\\x7f' + data[at + 4:])\n"
    code += "    try:\n        store = FeatureStore(folder)\n        [store.at(row) for row in range(len(store))]\n"
    code += "    except LavisExtError:\n        pass\n"
    kept = written(tmp_path / "whole", data)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s"), str(kept)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


# Standard streams


ENDS = [
    ("cite coco", "> /dev/full", 6),
    ("--help", "> /dev/full", 6),
    ("list --json", "> /dev/full 2>&1", 6),
    ("cite coco --json", ">&-", 6),
    ("--version", ">&- 2>&- <&-", 6),
    ("show nothing --json", ">&-", 2),
    ("cite coco", "2> /dev/full", 0),
    ("show nothing", "2>&- <&-", 2),
    ("show nothing --json", "2> /dev/full", 2),
]
"""A command, where its streams go, and its code: 6 where its answer cannot be written."""


@pytest.mark.fault("H35")
@pytest.mark.parametrize(("words", "end", "code"), ENDS)
def test_standard_streams_that_take_nothing(tmp_path: Path, words: str, end: str, code: int) -> None:
    around = {**os.environ, "LAVIS_EXT_CACHE_ROOT": str(tmp_path)}
    line = " ".join([*COMMAND, words, end])
    done = subprocess.run(["bash", "-c", line], env=around, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code and "Traceback" not in done.stderr + done.stdout
    assert code != 6 or "2>" in end or "standard output" in done.stderr


def test_a_slow_case_is_found() -> None:
    """The alarm of the mutated cases rings: without it a hang would look like a long run."""
    with pytest.raises(Slow), alarm(0.1):
        while True:
            pass
