"""What `storage` names is checked against what lies there, and nothing but local files is opened."""

import logging
from pathlib import Path

import pytest

from lavis_ext.common.errors import ConfigError, UnsafeError
from lavis_ext.datasets.readers.shard_index import braced, fixed_folder, list_shards, number_runs

WHERE = "datasets.x.build_info.storage"


def lay(folder: Path, *numbers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number:05d}.tar").touch()
        (folder / f"{number:05d}_stats.json").touch()


def stems(paths: list[Path]) -> list[int]:
    return [int(path.stem) for path in paths]


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        (["a"], [0, 1, 2, 10]),
        (["a/*.tar"], [0, 1, 2, 10]),
        (["a/0000[12].tar"], [1, 2]),
        (["a/{00000..00002}.tar"], [0, 1, 2]),
        (["a/{00002..00000}.tar"], [2, 1, 0]),
        (["a/000{00,10}.tar"], [0, 10]),
        (["a/0000{0..1}*.tar"], [0, 1]),
        (["a/00010.tar", "a"], [10, 0, 1, 2]),
        (["{a,b}/00001.tar"], [1, 1]),
        (["{a,b}/{00000..00001}.tar"], [0, 1, 0, 1]),
    ],
)
def test_forms(storage: list[str], expected: list[int], tmp_path: Path) -> None:
    lay(tmp_path / "a", 0, 1, 2, 10)
    lay(tmp_path / "b", 0, 1)
    assert stems(list_shards(storage, tmp_path, WHERE)) == expected
    absolute = [str(tmp_path / pattern) for pattern in storage]
    assert stems(list_shards(absolute, Path("/elsewhere"), WHERE)) == expected


def test_range_that_names_absent_shards(tmp_path: Path) -> None:
    lay(tmp_path / "a", 0, 1, 3, 6)
    with pytest.raises(
        ConfigError, match="names 9 shards, 5 of them are absent: 00002, 00004–00005, 00007–00008"
    ) as caught:
        list_shards(["a/{00000..00008}.tar"], tmp_path, WHERE)
    assert caught.value.exit_code == 3 and caught.value.problems[0].where == WHERE


@pytest.mark.parametrize("pattern", ["a", "a/*.tar", "a/00000.tar", "none/*.tar"])
def test_nothing_found(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match="finds no shards"):
        list_shards([pattern], tmp_path, WHERE)


def test_no_storage_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no shards"):
        list_shards([], tmp_path, WHERE)


def test_gaps_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lay(tmp_path / "a", 0, 1, 5, 6, 9)
    assert len(list_shards(["a"], tmp_path, WHERE)) == 5
    assert "00002–00004, 00007–00008" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        list_shards(["a/{00000..00001}.tar"], tmp_path, WHERE)
    assert caplog.text == ""


@pytest.mark.fault("S13")
@pytest.mark.parametrize(
    "pattern",
    [
        "pipe:touch harm",
        "http://x/{00000..00001}.tar",
        "https://x/0.tar",
        "s3://b/k.tar",
        "file:/etc/x.tar",
        "a.tar::pipe:x",
    ],
)
def test_anything_but_a_local_path_is_refused(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeError, match="is no local path") as caught:
        list_shards([pattern], tmp_path, WHERE)
    assert caught.value.exit_code == 10


def test_absurd_range(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than 1,000,000 shards"):
        list_shards(["a/{0..99999999999}.tar"], tmp_path, WHERE)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("{08..11}", ["08", "09", "10", "11"]), ("{9..010}", ["009", "010"]), ("{9..11}", ["9", "10", "11"])],
)
def test_a_leading_zero_of_either_end_is_the_width(pattern: str, names: list[str]) -> None:
    assert list(braced(pattern)) == names


def test_braces_are_those_of_the_shell() -> None:
    braceexpand = pytest.importorskip("braceexpand").braceexpand
    for pattern in ("{00..03}", "{8..11}", "a{1,2}b{x,y}", "{3..1}", "plain", "{1}"):
        assert list(braced(pattern)) == list(braceexpand(pattern))


@pytest.mark.parametrize(
    ("pattern", "folder"),
    [("a", "a"), ("a/b/*.tar", "a/b"), ("a/{0..1}.tar", "a"), ("a/0.tar", "a"), ("a/*/x.tar", "a")],
)
def test_fixed_folder(pattern: str, folder: str, tmp_path: Path) -> None:
    assert fixed_folder(pattern, tmp_path) == tmp_path / folder


def test_many_runs_are_cut() -> None:
    assert number_runs(range(0, 60, 2), 3).endswith("022 and 18 more runs")
