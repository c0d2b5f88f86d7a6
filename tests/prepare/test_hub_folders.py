"""Folders of cards that are repositories of the hub: listed at a commit, planned by its sizes, held to its SHA-256."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from lavis_ext.common.config.cards import Artifact, Card, Cards, RemoteFolder, load_cards
from lavis_ext.common.config.schema import BuildInfo, DatasetConfig, ImagesConfig
from lavis_ext.common.errors import AccessError, IntegrityError, NetworkError
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.datasets.builders.image_text_shards import ImageTextStream
from lavis_ext.fetch.hub import list_repository, repository_of
from lavis_ext.prepare import PrepareOptions, Report, plan, prepare
from lavis_ext.prepare.lockfile import Lock, accepted, compare
from tests.support.fetching import FAST
from tests.support.server import Fault, Server
from tests.support.shards import write_shard

COMMIT = "46f3d69f840e59d77d52e8decfe5baec97e94c7f"
TREE = f"/api/datasets/o/n/tree/{COMMIT}"


@pytest.fixture
def files(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A repository with four shards, their `_info.json` and a page, listed on two pages."""
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    monkeypatch.setenv("HF_TOKEN", "hf_drawn0123456789")
    for number in range(4):
        write_shard(tmp_path / "made", number, 3)
    names = {
        f"{number:05d}.tar": f"drawn-{'train' if number < 3 else 'validation'}-{number:04d}.tar" for number in range(4)
    }
    found = {names[path.name]: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    trained = [name for name in sorted(found) if "train" in name]
    info = {"splits": {"train": {"filenames": trained, "shard_lengths": [3, 3, 3]}}}
    found |= {"_info.json": json.dumps(info).encode(), "README.md": b"# drawn"}
    offer(server, found)
    return found


def offer(server: Server, found: dict[str, bytes]) -> None:
    entries: list[dict[str, object]] = [{"type": "directory", "path": "data", "oid": "d", "size": 0}]
    for name, data in sorted(found.items()):
        server.put(f"/datasets/o/n/resolve/{COMMIT}/{name}", data)
        server.put(f"/datasets/o/n/resolve/main/{name}", data)
        large = {"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}} if name.endswith("tar") else {}
        entries.append({"type": "file", "path": name, "size": len(data), "oid": f"git-{name}", **large})
    for revision in ("main", COMMIT):
        server.put(f"/api/datasets/o/n/revision/{revision}", json.dumps({"sha": COMMIT}).encode())
    following = f'<{server.base}{TREE}/second?recursive=true&cursor=abc>; rel="next"'
    server.put(TREE, json.dumps(entries[:3]).encode())
    server.script(TREE, Fault(1, headers={"Link": following}), Fault(1, instead=json.dumps(entries[3:]).encode()))


def cards(revision: str = "") -> Cards:
    shards = RemoteFolder(only=["drawn-train-*.tar", "_info.json"])
    one = Artifact(name="train", family="drawn", url=f"hf:datasets/o/n{revision}", storage="drawn", folder=shards)
    declared = DatasetConfig(
        name="drawn_wds", family="drawn", builder="image_text_shards", args={"caption_key": ".txt"},
        build_info=BuildInfo(storage=["drawn"], images=ImagesConfig(artifacts={"train": ["train"]})),
    )  # fmt: skip
    return Cards(
        {"drawn": Card(family="drawn", artifacts={"train": one}, datasets={"drawn_wds": {"default": declared}})}
    )


def options(root: Path, **more: object) -> PrepareOptions:
    return PrepareOptions(**{"cache_root": root, "policy": FAST, "reserve": 0, "mirror": "", **more})  # type: ignore[arg-type]


def get(root: Path, revision: str = "", **more: object) -> Report:
    return prepare(["drawn_wds"], options(root, **more), cards=cards(revision))


@pytest.mark.parametrize("revision", ["", f"@{COMMIT}"])
def test_a_repository_is_planned_fetched_and_read(
    revision: str, files: dict[str, bytes], server: Server, tmp_path: Path
) -> None:
    made = plan(["drawn_wds"], options(tmp_path / "root"), cards=cards(revision))
    wanted = {name: len(data) for name, data in files.items() if "train" in name or name == "_info.json"}
    assert {Path(item.file).name: item.download for item in made.items} == wanted
    assert [seen.headers.get("Authorization") for seen in server.log] == ["Bearer hf_drawn0123456789"] * 3
    offer(server, files)
    assert get(tmp_path / "root", revision).exit_code == 0
    config = cards().families["drawn"].datasets["drawn_wds"]["default"]
    stream = build_datasets(config, BuildContext(tmp_path / "root"))["train"]
    assert isinstance(stream, ImageTextStream) and stream.reader.counts == (3, 3, 3)
    assert [shard.promised for shard in stream.reader.shards] == [3, 3, 3]


def test_a_cut_shard_is_continued_and_a_wrong_one_refused(
    files: dict[str, bytes], server: Server, tmp_path: Path
) -> None:
    path = "/datasets/o/n/resolve/main/drawn-train-0001.tar"
    server.script(path, Fault(1, cut_at=4000))
    assert get(tmp_path / "root").exit_code == 0
    assert [seen.range for seen in server.requests(path)] == [None, "bytes=4000-"]
    offer(server, files)
    server.script(path, Fault(flip_at=100))
    report = get(tmp_path / "other")
    assert report.exit_code == 5 and not (tmp_path / "other/drawn/drawn-train-0001.tar").exists()


def test_the_listing_is_kept_and_offline_goes_on_with_it(
    files: dict[str, bytes], server: Server, tmp_path: Path
) -> None:
    assert get(tmp_path).exit_code == 0
    asked = len(server.log)
    assert get(tmp_path).exit_code == 0
    assert get(tmp_path, policy=replace(FAST, offline=True)).exit_code == 0
    assert [seen.path for seen in server.log[asked:] if "/resolve/" in seen.path] == []


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [(401, b"", AccessError), (404, b"", NetworkError), (0, b"{", IntegrityError), (0, b'{"sha": 7}', IntegrityError)],
)
def test_a_repository_that_is_not_to_be_had(
    status: int, body: bytes, error: type[Exception], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    server.put("/api/datasets/o/n/revision/main", body)
    server.script("/api/datasets/o/n/revision/main", Fault(status=status) if status else Fault())
    with pytest.raises(error):
        list_repository("hf:datasets/o/n", FAST)


def test_addresses_of_repositories() -> None:
    assert repository_of("hf://datasets/o/n@refs%2Fconvert%2Fparquet/a/b/") == (
        "datasets/",
        "o",
        "n",
        "refs/convert/parquet",
        "a/b",
    )
    assert repository_of("hf:o/n") == ("", "o", "n", "main", "")
    for url in ("hf:datasets/o", "hf:datasets/"):
        with pytest.raises(NetworkError):
            repository_of(url)


def test_the_shipped_repositories_have_a_commit_or_say_so() -> None:
    artifacts = load_cards().families["cc_wds"].artifacts
    assert all(a.folder and a.folder.only for a in artifacts.values())


def test_a_lock_pins_each_file_of_a_repository(
    files: dict[str, bytes], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lock = Lock(tmp_path / "lavis-ext.lock")
    made = plan(["drawn_wds"], options(tmp_path / "root"), cards=cards())
    for item in made.items:
        assert item.request is not None
        one = compare(item.request.artifact, None, lock, FAST)
        lock.pins[one.key] = accepted(one, tmp_path / "root", FAST)
    lock.write()
    assert {name.rpartition("/")[2] for name in lock.pins} == {n for n in files if "train" in n or n == "_info.json"}
    server.put(TREE, b"[]")  # what the hub lists later is nobody's business
    assert get(tmp_path / "locked", locked=True).exit_code == 0
    name = "drawn-train-0002.tar"
    server.put(f"/datasets/o/n/resolve/main/{name}", files[name][:-1] + b"x")
    assert get(tmp_path / "wrong", locked=True).exit_code == 5


@pytest.mark.parametrize("entry", [{"path": 7, "size": 5}, {"path": "a", "size": "5"}, {"path": "a", "size": -1}, {}])
def test_a_listing_with_a_file_that_has_no_name_or_size_is_refused(
    entry: dict[str, object], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    server.put("/api/datasets/o/n/revision/main", json.dumps({"sha": COMMIT}).encode())
    server.put(TREE, json.dumps([{"type": "file", "oid": "x", **entry}]).encode())
    with pytest.raises(IntegrityError):
        list_repository("hf:datasets/o/n/", FAST)
