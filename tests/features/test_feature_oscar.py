"""Oscar's and VinVL's rows: into a store and back byte for byte, with every broken row named by id and line."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_ext.common.errors import IntegrityError, UsageError
from lavis_ext.features import ReadOptions, export_store, import_features, open_store
from lavis_ext.features.formats.lines import write_lineidx
from lavis_ext.features.formats.tsv import six_columns
from lavis_ext.features.imports import raise_for
from tests.support.features import Image, b64, caption_tsv, make_image, make_images, oscar_tsv, same

OBJECTS = [
    {"class": "Hund", "conf": 0.5, "rect": [1.0, 2.0, 30.5, 40.0]},
    {"class": "ÿ", "conf": 0.25, "rect": [0, 0, 1, 1]},
]


@pytest.mark.parametrize(("form", "write"), [("oscar-tsv", oscar_tsv), ("vinvl-tsv", caption_tsv)])
def test_round_trip_is_byte_equal(tmp_path: Path, form: str, write: object) -> None:
    images = make_images(9, 2054)
    source = write(tmp_path / "features.tsv", images)
    done = import_features([source], tmp_path / "s")
    store = open_store(tmp_path / "s")
    assert (done.added, done.faults) == (9, [])
    assert store.about.sources[0]["format"] == form
    assert all(same(store[image.image_id], image) or store[image.image_id].box_unit == "fraction" for image in images)
    (tmp_path / "out").mkdir()
    export_store(store, tmp_path / "out" / "features.tsv", form)
    assert (tmp_path / "out" / "features.tsv").read_bytes() == source.read_bytes()


def test_side_files_are_in_bytes_and_rows(tmp_path: Path) -> None:
    images = [make_image(image_id, n, 2054) for image_id, n in (("ä", 1), ("zwei", 0), ("三", 2))]
    source = oscar_tsv(tmp_path / "features.tsv", images)
    assert {p.name for p in write_lineidx(source)} == {"features.lineidx", "imageid2idx.json"}
    data = source.read_bytes()
    offsets = [int(line) for line in (tmp_path / "features.lineidx").read_text().split()]
    assert [data[at:].split(b"\t")[0].decode() for at in offsets] == ["ä", "zwei", "三"]
    assert json.loads((tmp_path / "imageid2idx.json").read_text()) == {"ä": 0, "zwei": 1, "三": 2}
    assert write_lineidx(source) == []


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_side_files_of_one_line(tmp_path: Path, mark: bytes, end: str) -> None:
    """Features of a single picture, as people write them by hand: no final line break, or a byte order mark."""
    rows = {
        "my.feature.tsv": json.dumps({"num_boxes": 2, "features": b64(make_image("5", 2, 2054).features)}),
        "my.label.tsv": json.dumps(OBJECTS),
        "my.hw.tsv": '[{"height": 50, "width": 60}]',
    }
    for name, text in rows.items():
        (tmp_path / name).write_bytes(mark + f"5\t{text}{end}".encode())
    assert import_features([tmp_path / "my.feature.tsv"], tmp_path / "s").faults == []
    record = open_store(tmp_path / "s")["5"]
    assert (record.image_id, record.height, record.width, record.labels) == ("5", 50, 60, OBJECTS)


def test_a_side_file_that_is_no_text(tmp_path: Path) -> None:
    source = oscar_tsv(tmp_path / "features.tsv", make_images(1, 2054))
    (tmp_path / "predictions.tsv").write_bytes(b"\xff\xfe5\t[]")
    with pytest.raises(IntegrityError) as caught:
        import_features([source], tmp_path / "s")
    assert caught.value.problems[0].where == f"{tmp_path / 'predictions.tsv'}, line 1"


def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path: Path) -> None:
    source = oscar_tsv(tmp_path / "x_img_frcnn_feats.tsv", make_images(2, 2054))
    plain = source.read_bytes()
    source.write_bytes(b"\xef\xbb\xbf" + plain)
    ids = [image.image_id for image in make_images(2, 2054)]
    (tmp_path / "x_img_frcnn_feats_offset_map.json").write_text(
        json.dumps({ids[0]: 0, ids[1]: 3 + plain.index(b"\n") + 1})
    )
    for name in ("x_img_frcnn_feats.tsv", "x_img_frcnn_feats_offset_map.json"):
        assert import_features([tmp_path / name], tmp_path / f"{name}.store").faults == []
        assert [record.image_id for record in map(open_store(tmp_path / f"{name}.store").at, range(2))] == ids


def test_a_bad_row_is_named_by_its_file(tmp_path: Path) -> None:
    one, other = (oscar_tsv(tmp_path / f"{name}.tsv", [make_image(name, 1, 2054)]) for name in ("one", "other"))
    other.write_bytes(other.read_bytes()[:-6] + b"\n")
    done = import_features([one, other], tmp_path / "s")
    with pytest.raises(IntegrityError) as caught:
        raise_for(done.faults, str(tmp_path / "s"))
    assert [problem.where for problem in caught.value.problems] == [f"{other}, line 1, image 'other'"]
    again = import_features([one, other], tmp_path / "s")  # read from the store's own account
    assert [fault.source for fault in again.faults] == [str(other)]


@pytest.mark.fault("D10")
def test_a_lineidx_that_does_not_fit_is_told_and_left(tmp_path: Path) -> None:
    source = oscar_tsv(tmp_path / "features.tsv", make_images(2, 2054))
    (tmp_path / "features.lineidx").write_text("0\n17\n")
    with pytest.raises(IntegrityError, match=r"does not fit features\.tsv"):
        write_lineidx(source)
    assert (tmp_path / "features.lineidx").read_text() == "0\n17\n"
    assert import_features([source], tmp_path / "s").added == 2, "it is not relied on"
    (tmp_path / "features.lineidx").unlink()
    write_lineidx(source)
    first = len(source.read_bytes().splitlines(keepends=True)[0])
    assert (tmp_path / "features.lineidx").read_text().split() == ["0", str(first)]


def test_labels_and_sizes_lie_beside_and_go_back(tmp_path: Path) -> None:
    images = make_images(3, 2054)
    source = oscar_tsv(tmp_path / "features.tsv", images)
    value = {"image_h": 480, "image_w": 640, "objects": OBJECTS}
    lines = [f"{image.image_id}\t{json.dumps(value, ensure_ascii=False)}\n" for image in reversed(images)]
    (tmp_path / "predictions.tsv").write_text("".join(reversed(lines)), encoding="utf-8")
    import_features([source], tmp_path / "s")
    store = open_store(tmp_path / "s")
    for image in images:
        record = store[image.image_id]
        assert (record.height, record.width, record.box_unit) == (480, 640, "pixel")
        assert np.allclose(record.boxes, image.boxes, atol=1e-3)
        assert record.labels == OBJECTS  # two labels, whatever the number of boxes
    (tmp_path / "out").mkdir()
    export_store(store, tmp_path / "out" / "features.tsv", "oscar-tsv")
    for name in ("features.tsv", "predictions.tsv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert (tmp_path / "out" / "predictions.lineidx").is_file()


def test_captioning_files_find_their_neighbours(tmp_path: Path) -> None:
    images = make_images(2, 2054)
    source = caption_tsv(tmp_path / "train.feature.tsv", images)
    (tmp_path / "train.label.tsv").write_text("".join(f"{i.image_id}\t{json.dumps(OBJECTS)}\n" for i in images))
    (tmp_path / "train.hw.tsv").write_text(
        "".join(f'{i.image_id}\t[{{"height": 480, "width": 640}}]\n' for i in images)
    )
    import_features([source], tmp_path / "s", dtype="float16")
    record = open_store(tmp_path / "s")[images[0].image_id]
    assert (record.height, record.width, record.labels) == (480, 640, OBJECTS)
    assert np.allclose(record.boxes, images[0].boxes, atol=1e-3)  # boxes keep float32


def test_without_a_size_boxes_are_fractions(tmp_path: Path) -> None:
    image = make_image("7", 3, 2054)
    import_features([oscar_tsv(tmp_path / "f.tsv", [image])], tmp_path / "s")
    record = open_store(tmp_path / "s")["7"]
    assert record.box_unit == "fraction"
    assert np.array_equal(record.boxes, image.features[:, 2048:2052])


def test_raw_predictions_get_their_six_columns(tmp_path: Path) -> None:
    image = make_image("7", 2)
    objects = [
        {"rect": box.tolist(), "class": "dog", "conf": 0.5, "feature": b64(vector)}
        for box, vector in zip(image.boxes, image.features, strict=True)
    ]
    value = {"image_h": 480, "image_w": 640, "objects": objects}
    (tmp_path / "predictions.tsv").write_text(f"7\t{json.dumps(value)}\n")
    import_features([tmp_path / "predictions.tsv"], tmp_path / "s")
    record = open_store(tmp_path / "s")["7"]
    assert record.features.shape == (2, 2054)
    assert np.array_equal(record.features[:, :2048], image.features)
    assert np.array_equal(record.features[:, 2048:], six_columns(image.boxes, 480, 640))
    assert [label["class"] for label in record.labels] == ["dog", "dog"]


def test_half_precision_files_are_told_by_their_length(tmp_path: Path) -> None:
    image = make_image("7", 3, 2054)
    half = image.features.astype("<f2")
    (tmp_path / "f.tsv").write_text(f"7\t3\t{b64(half)}\n")
    import_features([tmp_path / "f.tsv"], tmp_path / "s", dtype="float16")
    assert np.array_equal(open_store(tmp_path / "s")["7"].features, half)


def row(image_id: str, count: int, said: object = None, columns: int = 2054) -> str:
    image = make_image(image_id, count, columns)
    return f"{image_id}\t{count if said is None else said}\t{b64(image.features)}"


@pytest.mark.fault("D11")
@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (row("x", 2)[:-100], "truncated"),
        (row("x", 2)[:-101], "truncated"),
        (row("x", 2, said=3), "cannot be 3 boxes|not any known width"),
        (row("x", 2, said="two"), "num_boxes: expected a number"),
        (row("x", 2, said=-1), "out of range"),
        (row("x", 2, said=0), "for 0 boxes"),
        (row("x", 2, columns=1000), "not any known width|not 2054 columns"),
        (row("x", 2).replace("\t", " ", 1).replace("\t", " "), "one column"),
        ("x\t{not json}", "no JSON"),
        ('x\t[{"class": "dog"}]', "labels are given with --labels"),
        (row("x", 2)[:-400] + "!" * 4 + row("x", 2)[-396:], "truncated"),
    ],
)
def test_a_broken_row_is_named_and_the_others_are_kept(tmp_path: Path, broken: str, what: str) -> None:
    (tmp_path / "f.tsv").write_text("\n".join([row("a", 1), broken, row("b", 2)]) + "\n")
    done = import_features([tmp_path / "f.tsv"], tmp_path / "s", form="oscar-tsv")
    assert list(open_store(tmp_path / "s")) == ["a", "b"]
    assert [(fault.line, fault.image_id[:1]) for fault in done.faults] == [(2, "x")]
    with pytest.raises(IntegrityError, match=rf"line 2, image 'x.*({what})"):
        raise_for(done.faults, "f.tsv")
    again = import_features([tmp_path / "f.tsv"], tmp_path / "s", form="oscar-tsv")
    assert (again.added, len(again.faults)) == (0, 1)  # told again, not forgotten


def test_a_file_that_ends_in_the_middle_of_a_row(tmp_path: Path) -> None:
    source = oscar_tsv(tmp_path / "f.tsv", make_images(4, 2054))
    source.write_bytes(source.read_bytes()[:-1000])
    done = import_features([source], tmp_path / "s")
    assert (done.added, [fault.line for fault in done.faults]) == (3, [4])


def test_bytes_that_are_no_text_are_a_fault(tmp_path: Path) -> None:
    (tmp_path / "f.tsv").write_bytes(row("a", 1).encode() + b"\n\xff\xfe\t1\tAAAA\n")
    done = import_features([tmp_path / "f.tsv"], tmp_path / "s")
    assert [(fault.line, "UTF-8" in fault.what) for fault in done.faults] == [(2, True)]


def test_repeated_rows(tmp_path: Path) -> None:
    other = make_image("a", 3, 2054, seed=5)
    images = [make_image("a", 2, 2054), make_image("b", 1, 2054), make_image("a", 2, 2054), other]
    done = import_features([oscar_tsv(tmp_path / "f.tsv", images)], tmp_path / "s")
    assert (done.added, done.repeated) == (2, 1)
    assert [(f.line, f.image_id) for f in done.faults] == [(4, "a")]
    assert same(open_store(tmp_path / "s")["a"], images[0]) or len(open_store(tmp_path / "s")["a"]) == 2
    with pytest.raises(IntegrityError, match="line 1 and in line 3"):
        write_lineidx(tmp_path / "f.tsv")


def test_several_sources_make_one_store_and_none_is_read_twice(tmp_path: Path) -> None:
    images = make_images(6, 2054)
    parts = [oscar_tsv(tmp_path / "0.tsv", images[:3]), caption_tsv(tmp_path / "1.tsv", images[3:])]
    import_features(parts, tmp_path / "s")
    again = import_features(parts, tmp_path / "s")
    assert (again.added, again.kept, len(open_store(tmp_path / "s"))) == (0, 6, 6)


def test_a_source_that_changed_is_refused(tmp_path: Path) -> None:
    source = oscar_tsv(tmp_path / "f.tsv", make_images(2, 2054))
    import_features([source], tmp_path / "s")
    oscar_tsv(source, make_images(3, 2054))
    with pytest.raises(IntegrityError, match="has changed"):
        import_features([source], tmp_path / "s")


def test_sources_of_other_widths_are_not_mixed(tmp_path: Path) -> None:
    parts = [oscar_tsv(tmp_path / "0.tsv", make_images(2, 2054)), oscar_tsv(tmp_path / "1.tsv", [make_image("z", 2)])]
    done = import_features(parts, tmp_path / "s")
    assert [fault.image_id for fault in done.faults] == ["z"]


def test_existing_files_are_not_written_over(tmp_path: Path) -> None:
    source = oscar_tsv(tmp_path / "f.tsv", make_images(2, 2054))
    import_features([source], tmp_path / "s")
    before = source.read_bytes()
    with pytest.raises(UsageError, match="not overwritten"):
        export_store(open_store(tmp_path / "s"), source, "oscar-tsv")
    assert source.read_bytes() == before


def test_ids_that_a_row_cannot_hold_are_refused(tmp_path: Path) -> None:
    from lavis_ext.features import create_store

    with create_store(tmp_path / "s") as writer:
        writer.append(make_image("a\tb", 1, 2054).row())
    with pytest.raises(UsageError, match="tab or a new line"):
        export_store(open_store(tmp_path / "s"), tmp_path / "f.tsv", "oscar-tsv")
    assert not (tmp_path / "f.tsv").exists()


def test_an_unusual_width_is_named(tmp_path: Path) -> None:
    source = oscar_tsv(tmp_path / "f.tsv", [make_image("a", 2, 38)])
    assert len(import_features([source], tmp_path / "s", form="oscar-tsv").faults) == 1
    done = import_features([source], tmp_path / "t", options=ReadOptions(columns=38))
    assert (done.added, open_store(tmp_path / "t").columns) == (1, 38)


IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(IDS, st.sampled_from([0, 1, 2, 100]), min_size=1, max_size=6),
    st.sampled_from([("oscar-tsv", oscar_tsv), ("vinvl-tsv", caption_tsv)]),
    st.integers(0, 2**32 - 1),
)
def test_any_rows_go_there_and_back(
    tmp_path_factory: pytest.TempPathFactory, counts: dict[str, int], form: tuple[str, object], bits: int
) -> None:
    """Random bit patterns, so that nothing that float32 can hold is lost, payloads of NaN included."""
    folder = tmp_path_factory.mktemp("any")
    rng = np.random.default_rng(bits)
    images = [
        Image(i, rng.integers(0, 2**32, (n, 14), np.uint32).view("<f4"), np.zeros((n, 4), "<f4"))
        for i, n in counts.items()
    ]
    name, write = form
    source = write(folder / "f.tsv", images)
    done = import_features([source], folder / "s", form=name, options=ReadOptions(columns=14))
    assert (done.added, done.faults) == (len(images), [])
    (folder / "out").mkdir()
    export_store(open_store(folder / "s"), folder / "out" / "f.tsv", name)
    assert (folder / "out" / "f.tsv").read_bytes() == source.read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_rows_or_faults(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    folder = tmp_path_factory.mktemp("junk")
    (folder / "f.tsv").write_bytes(junk)
    done = import_features([folder / "f.tsv"], folder / "s", form="oscar-tsv")
    assert done.added + done.repeated + len(done.faults) == len(junk.split(b"\n")) - (junk.endswith(b"\n") or not junk)


def test_base64_of_python_agrees(tmp_path: Path) -> None:
    from lavis_ext.features.formats.lines import decode64, encode64

    for size in range(9):
        raw = bytes(range(size))
        assert encode64(raw) == base64.b64encode(raw) and decode64(encode64(raw)) == raw
