"""Rows in are rows out, from a copy that is written once and mapped from then on."""

import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.common.errors import ConfigError, DiskError, IntegrityError
from lavis_ext.datasets.readers import annotations, encoding, tables
from lavis_ext.datasets.readers.annotations import Annotations, cache_places
from lavis_ext.datasets.readers.columns import missing_columns
from lavis_ext.datasets.readers.encoding import BATCH_ROWS, columns_of, decode_row, write_rows
from lavis_ext.datasets.readers.parse import parse_rows, row_blocks
from lavis_ext.datasets.readers.tables import Unstreamed
from tests.support.pictures import write_json

texts = st.text(max_size=6)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | texts
surrogates = st.text(st.characters(categories=["Cs", "Ll"]), max_size=3)
values = st.recursive(
    scalars | surrogates, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=5
)
uniform = st.sampled_from([texts, st.integers(0, 9), st.lists(texts, max_size=3), st.lists(st.integers(), max_size=2)])
columns = st.one_of(st.just(values), uniform)
row_lists = st.lists(st.dictionaries(st.sampled_from("abcd") | texts, values, max_size=4), max_size=6)


def same(a: Any, b: Any) -> bool:
    """Equality that tells 1 from 1.0 and True."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def arrow_of(rows: list[dict[str, Any]]) -> pa.ipc.RecordBatchFileReader:
    stream = io.BytesIO()
    write_rows(stream, lambda: [rows], {})
    return pa.ipc.open_file(stream.getvalue())


def through_arrow(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    read = arrow_of(rows)
    marks = json.loads(read.schema.metadata[b"lavis_ext"])["columns"]
    batches = [read.get_batch(number) for number in range(read.num_record_batches)]
    return [decode_row(columns_of(b, marks), i) for b in batches for i in range(b.num_rows)]


def test_words_are_counted_by_spaces_and_semicolons(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"q": "is it red ?", "o": ["a b"]}, {"q": "cat;red ball"}, {"q": ""}, {"o": ["c"]}]
    rows = [{**row, "l": ["a b", "", "c;d e"][number:]} for number, row in enumerate(rows)]
    first, second = (write_json(tmp_path / name, some) for name, some in (("a.json", rows), ("b.json", [{"n": 3}])))
    both = Annotations([first, second])
    assert both.words("q").tolist() == [4, 3, 1, 0, 0]
    assert both.words("o").tolist() == [2, 0, 0, 1, 0]
    assert both.words("l").tolist() == [6, 4, 3, 0, 0]
    assert both.words("n").tolist() == both.words("none").tolist() == [0] * 5
    assert both.head(2).words("q").tolist() == [4, 3]
    assert Annotations([]).words("q").tolist() == []


@settings(deadline=None)
@given(row_lists)
def test_any_rows_come_back(rows: list[dict[str, Any]]) -> None:
    assert same(through_arrow(rows), rows)


@settings(deadline=None)
@given(st.data())
def test_rows_of_even_columns_come_back(data: st.DataObject) -> None:
    kinds = {name: data.draw(columns) for name in "abc"}
    rows = data.draw(st.lists(st.fixed_dictionaries({}, optional=kinds), max_size=6))
    assert same(through_arrow(rows), rows)


@settings(max_examples=25, deadline=None)
@given(row_lists)
def test_any_json_list_reads_as_itself(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = write_json(tmp_path_factory.mktemp("rows") / "a.json", rows)
    for _ in range(2):
        read = list(Annotations([path]))
        assert same(read, [{**row, "instance_id": str(i)} for i, row in enumerate(rows)])


def test_columns_that_can_be_are_native() -> None:
    rows = [{"s": "a", "l": ["x"], "n": 1, "mixed": 1}, {"s": "b", "l": [], "n": 2, "mixed": "1"}]
    schema = arrow_of(rows).schema
    assert [str(field.type) for field in schema] == ["string", "list<item: string>", "int64", "string"]
    assert json.loads(schema.metadata[b"lavis_ext"])["columns"]["mixed"] == "json"


def test_several_files_are_one_sequence(tmp_path: Path) -> None:
    first = write_json(tmp_path / "a.json", [{"q": 1}, {"q": 2}])
    second = write_json(tmp_path / "b.json", [{"q": "x"}, {"r": 3}])
    rows = Annotations([first, second])
    assert [row["instance_id"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[-1] == {"r": 3, "instance_id": "3"}
    assert [row["q"] for row in rows[:3]] == [1, 2, "x"]
    assert rows.column("q") == [1, 2, "x", None]
    assert rows.keys() == ["q", "r"]
    assert rows.has("r")
    with pytest.raises(IndexError):
        rows[4]


def test_codes_number_values_in_order_of_appearance(tmp_path: Path) -> None:
    ids = ["c", "a", "c", "b", "a"]
    path = write_json(tmp_path / "a.json", [{"id": i, "mixed": [i] if n else i} for n, i in enumerate(ids)])
    assert Annotations([path]).codes("id").tolist() == [0, 1, 0, 2, 1]
    assert Annotations([path, path]).codes("id").tolist() == [0, 1, 0, 2, 1] * 2
    assert Annotations([path]).codes("mixed").tolist() == [0, 1, 2, 3, 1]
    assert Annotations([path], limit=3).codes("id").tolist() == [0, 1, 0]
    assert Annotations([path]).codes("nowhere").tolist() == [0] * 5
    numbers = write_json(tmp_path / "b.json", [{"id": n} for n in (7, 8, 7)])
    assert Annotations([path, numbers]).codes("id").tolist() == [0, 1, 0, 2, 1, 3, 4, 3], "texts and numbers"


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries({}, optional={"id": st.one_of(st.none(), st.sampled_from(["a", "b", 1, 1.0, -0.0, 0.0]))})
    )
)
def test_few_and_many_rows_are_numbered_alike(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    table = Annotations([write_json(tmp_path_factory.mktemp("rows") / "a.json", rows)])
    few = table.codes("id").tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotations, "FEW", -1)
        assert table.codes("id").tolist() == few


def test_head_and_pickle(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [{"n": n} for n in range(5)])
    head = Annotations([path]).head(2)
    assert len(head) == 2
    assert list(pickle.loads(pickle.dumps(head))) == list(head)
    assert len(pickle.dumps(head)) < 300
    assert len(head.head(99)) == 2


def test_more_rows_than_a_batch(tmp_path: Path) -> None:
    count = BATCH_ROWS + 3
    rows = Annotations([write_json(tmp_path / "a.json", [{"n": n} for n in range(count)])])
    assert [rows[i]["n"] for i in (0, BATCH_ROWS - 1, BATCH_ROWS, count - 1)] == [
        0,
        BATCH_ROWS - 1,
        BATCH_ROWS,
        count - 1,
    ]


@pytest.mark.parametrize("late", [{"n": "x"}, {"m": 1}, {"n": None}, {}, {"n": 2**70}, {"n": [1]}])
def test_a_late_row_of_another_kind_is_kept_exactly(tmp_path: Path, late: dict[str, Any]) -> None:
    rows: list[dict[str, Any]] = [{"n": n} for n in range(BATCH_ROWS + 2)] + [late] + [{"n": 1}] * BATCH_ROWS
    read = Annotations([write_json(tmp_path / "a.json", rows)])
    assert len(read) == len(rows)
    for i in (0, BATCH_ROWS, BATCH_ROWS + 2, len(rows) - 1):
        assert same(read[i], {**rows[i], "instance_id": str(i)})


@settings(max_examples=200, deadline=None)
@given(row_lists, st.sampled_from([None, 1]), st.integers(1, 40), st.booleans())
def test_pieces_of_any_size_hold_the_same_rows(rows: list[Any], indent: int | None, size: int, lines: bool) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(tables, "PIECE", size)
        path = Path(folder, "a.jsonl" if lines else "a.json")
        text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=indent, ensure_ascii=False)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            found = [row for block in row_blocks(path) for row in block]
        except Unstreamed:  # a lone surrogate that is written as it is, which is not UTF-8
            with pytest.raises(IntegrityError):
                parse_rows(path)
        else:
            assert same(found, rows)


@pytest.mark.parametrize("size", [3, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        *('[{"a": 1},]', '[{"a": 1}', '[{"a": 1}{"a": 2}]', '[{"a": 1},,{"a": 2}]', '[{"a": 1}] x', "[,]", '{"a": 1}'),
        *('[{"a": 1}, 5]', '[{"a": {"b": 1}, }]', '[{"a": [{"b": 1}, {"c": 2}]}, {"a": }]', '\x0b[{"a": 1}]', "", "["),
        *('[{"a": 1}, {"b": "}, {"]', '[[{"a": 1}], {"a": 1}]', '[{"a": "\x01"}]'),
    ],
)
def test_what_is_no_list_of_records_is_left_to_the_whole_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, size: int
) -> None:
    monkeypatch.setattr(tables, "PIECE", size)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(Unstreamed):
        list(row_blocks(tmp_path / "a.json"))


@pytest.mark.parametrize("lines", ['{"a": [1\n2]}\n{"b": 1},{"c": 2}', '{"a": 1} {"b": 2}', '{"a": 1},', "5", "{"])
def test_lines_are_records_one_each(tmp_path: Path, lines: str) -> None:
    (tmp_path / "a.jsonl").write_text(lines)
    with pytest.raises(Unstreamed):
        list(row_blocks(tmp_path / "a.jsonl"))


def test_the_first_conversion_holds_no_more_than_some_batches(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    code = (
        "import resource, sys; from lavis_ext.datasets.readers.annotations import Annotations; import pyarrow\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak(); Annotations([sys.argv[1]]); print(peak() - before)"
    )
    row = json.dumps({"caption": "a man on a wave " * 12, "image": "val2014/COCO_val2014_000000000042.jpg"})
    path.write_text(f"[{', '.join([row] * 400_000)}]")  # 107 MB of text, of which a batch is 17
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 190


def test_rows_that_were_written_are_let_go_before_more_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(dict[str, Any]):
        alive = 0

        def __init__(self) -> None:
            super().__init__(a=1)
            Counted.alive += 1

        def __del__(self) -> None:
            Counted.alive -= 1

    def blocks() -> Iterator[list[dict[str, Any]]]:
        for _ in range(12):
            most.append(Counted.alive)
            yield [Counted() for _ in range(10)]

    most: list[int] = []
    monkeypatch.setattr(encoding, "BATCH_ROWS", 40)
    write_rows(io.BytesIO(), blocks, {})
    assert max(most) <= 40  # three blocks of a batch, and the last that was given


def test_the_copy_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_json(tmp_path / "a.json", [{"n": 1}])
    Annotations([path])
    copy = tmp_path / ".lavis_ext" / "a.json.arrow"
    assert copy.is_file()
    for name in ("parse_rows", "row_blocks"):
        monkeypatch.setattr(annotations, name, lambda _: pytest.fail("parsed again"))
    assert Annotations([path])[0]["n"] == 1
    assert [p.name for p in copy.parent.iterdir()] == ["a.json.arrow"]


def test_a_changed_source_is_read_again(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [{"n": 1}])
    assert Annotations([path])[0]["n"] == 1
    before = path.stat().st_mtime_ns
    write_json(path, [{"n": 2}])
    os.utime(path, ns=(before + 1, before + 1))
    assert Annotations([path])[0]["n"] == 2


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * len(b)])
def test_a_damaged_copy_is_written_again(tmp_path: Path, damage: Any) -> None:
    path = write_json(tmp_path / "a.json", [{"n": n} for n in range(50)])
    Annotations([path])
    copy = cache_places(path)[0]
    copy.write_bytes(damage(copy.read_bytes()))
    assert Annotations([path])[49]["n"] == 49


def test_a_folder_that_takes_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, home = tmp_path / "data", tmp_path / "home"
    path = write_json(data / "a.json", [{"n": 1}])
    (data / ".lavis_ext").write_text("a file in the way, as a read-only folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    assert Annotations([path])[0]["n"] == 1
    assert len(list(home.rglob("*.arrow"))) == 1
    (home / "lavis_ext" / "annotations").rename(home / "gone")
    (home / "lavis_ext" / "annotations").write_text("")
    monkeypatch.setattr(annotations.tempfile, "gettempdir", lambda: str(path))
    with pytest.raises(DiskError, match="XDG_CACHE_HOME"):
        Annotations([path])


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_json(tmp_path / "a.json", [{"n": 1}])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(annotations.os, "fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        Annotations([path])
    assert not [p for p in tmp_path.rglob("*arrow*") if p.is_file()]


def test_errors_are_not_cached(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"n": 1}')
    with pytest.raises(IntegrityError):
        Annotations([path])
    path.write_text('[{"n": 1}]')
    assert len(Annotations([path])) == 1
    with pytest.raises(ConfigError, match="prepare"):
        Annotations([tmp_path / "none.json"])


def test_reading_annotations_does_not_import_torch() -> None:
    names = "lavis_ext.datasets.readers.annotations, lavis_ext.datasets.readers.images"
    code = f"import sys, {names}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_numbering_what_was_converted_before_imports_no_more_libraries(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [{"image": f"{n % 7}.jpg"} for n in range(100)])
    assert list(Annotations([path]).codes("image")[:9]) == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    code = "import sys; from pathlib import Path; from lavis_ext.datasets.readers.annotations import Annotations\n"
    code += "import lavis_ext.datasets.readers.annotations as module; module.FEW = int(sys.argv[2])\n"
    code += "found = Annotations([Path(sys.argv[1])]).codes('image')\n"
    code += "print(len(found), 'pandas' in sys.modules, 'pyarrow.compute' in sys.modules)"
    for few, said in (("99", ["100", "False", "True"]), ("100", ["100", "False", "False"])):
        done = subprocess.run([sys.executable, "-c", code, str(path), few], capture_output=True, text=True, check=True)
        assert done.stdout.split() == said


def test_rows_are_mapped_not_held(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [{"caption": "x" * 500} for _ in range(20_000)])
    Annotations([path])
    before = pa.total_allocated_bytes()
    rows = Annotations([path])
    assert rows[19_999]["caption"] == "x" * 500
    assert pa.total_allocated_bytes() - before < 100_000


@pytest.mark.parametrize(
    "rows",
    [
        [{"an": [1, 2]}, {"an": []}, {}, {"an": [3]}],
        [{"an": [1, "x"]}, {"an": None}, {"b": 1}, {"an": [[]]}],
        [{"b": 1}],
        [{"an": []}, {"an": []}],
    ],
)
def test_lengths_of_lists(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = write_json(tmp_path / "a.json", rows)
    expected = [len(row.get("an") or []) for row in rows]
    assert Annotations([path, path]).lengths("an").tolist() == expected * 2
    assert Annotations([path], limit=1).lengths("an").tolist() == expected[:1]


class Counted:
    """Rows that no single file holds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def name(self) -> str:
        return "counted"

    def parse(self) -> list[dict[str, Any]]:
        return [{"letter": letter} for letter in self.path.read_text()]


def test_a_source_of_rows_is_copied_as_a_file_is(tmp_path: Path) -> None:
    path = tmp_path / "letters.txt"
    path.write_text("abc")
    assert [row["letter"] for row in Annotations([Counted(path)])] == ["a", "b", "c"]
    assert (tmp_path / ".lavis_ext/counted.arrow").is_file()
    path.write_text("wxyz")
    assert len(Annotations([Counted(path)])) == 4


def test_columns_that_no_row_has_are_told_with_the_way_out() -> None:
    rows = [{"text": "a cat", "file": "a.jpg"}]
    [problem] = missing_columns("datasets.a", {"caption_key": "caption"}, rows, ["text", "file"])
    assert problem.where == "datasets.a" and "caption_key: text" in problem.way_out
    [problem] = missing_columns("datasets.a", {"caption_key": "caption"}, [{"text": True}], ["text"])
    assert "caption_key: …" in problem.way_out, "true is no text"
    joined = "file;text"
    found = missing_columns("datasets.a", {"image_key": "image", "caption_key": "text"}, [{joined: "a;b"}], [joined])
    assert len(found) == 1 and "delimiter: ';'" in found[0].way_out, "the others may be there"
