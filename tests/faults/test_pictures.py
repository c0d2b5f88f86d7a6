"""Pictures and texts as the world has them: bombs, pages, cut, odd and missing pictures, captions of every kind."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis_ext.common.errors import IntegrityError, PartialError
from lavis_ext.datasets.builders import BuildContext, build_datasets, load_dataset
from lavis_ext.datasets.mixture import Mixture
from lavis_ext.datasets.readers import SampleError
from lavis_ext.datasets.readers.decode import decode_rgb
from lavis_ext.datasets.readers.images import ImageStore
from lavis_ext.prepare import status, verify
from lavis_ext.prepare.urls import fetch_hosted, fetch_list
from lavis_ext.prepare.urls.worker import PassOrder
from tests.prepare.urls.conftest import orders  # noqa: F401 - a fixture
from tests.support.pictures import caption_config, encoded, pixels, write_captions, write_json
from tests.support.server import Server
from tests.support.toyfamily import Family, rows_of
from tests.support.weblist import WebList, make_job


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header says so much."""
    parts = [
        (b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    ]
    chunks = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg(width: int, height: int) -> bytes:
    """A JPEG whose header says so much."""
    data = bytearray(encoded(pixels(1, 16, 16), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


GOOD = encoded(pixels(3), "JPEG")
BAD: dict[str, bytes] = {
    "bomb": png(50_000, 50_000),
    "cut": GOOD[: len(GOOD) // 2],
    "cut, with an end": GOOD[: len(GOOD) // 2] + b"\xff\xd9",
    "page": b"<!DOCTYPE html><html><body>gone</body></html>",
    "empty": b"",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "tiff": b"II*\0" + bytes(60),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
}


@pytest.mark.fault("I01")
@pytest.mark.parametrize("bomb", [png(50_000, 50_000), jpeg(60_000, 60_000), png(200_000, 601), png(2**31 - 1, 1)])
def test_a_bomb_is_refused_by_its_header(bomb: bytes) -> None:
    import resource

    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(SampleError, match="too large"):
        decode_rgb(bomb)
    assert time.process_time() - begun < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kB"


def harmed(tmp_path: Path, data: bytes | None) -> Any:
    """Twelve samples, two a picture; the picture of two of them replaced, or removed."""
    write_captions(tmp_path)
    path = tmp_path / f"coco/images/val2014/COCO_val2014_{1:012d}.jpg"
    path.unlink() if data is None else path.write_bytes(data)
    return replace(caption_config(), tolerance=0.2)


CUT, OTHER = pytest.mark.fault("I02"), pytest.mark.fault("I10")
MARKS = {"cut": CUT, "cut, with an end": CUT, "bomb": pytest.mark.fault("I01")}
MARKS |= {"page": pytest.mark.fault("I03"), "empty": pytest.mark.fault("I04")}
KINDS = [pytest.param(kind, marks=MARKS.get(kind, OTHER)) for kind in BAD]


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_is_none_is_counted_with_its_id_and_never_replaced(kind: str, tmp_path: Path) -> None:
    dataset = build_datasets(harmed(tmp_path, BAD[kind]), BuildContext(tmp_path, ["train"]))["train"]
    with pytest.raises(SampleError, match="little/train#2"):
        dataset[2]
    feed = Mixture({"little": dataset}, batch_size=4, num_workers=2)
    texts = sorted(text for batch in feed for text in batch["text_input"])
    assert texts == sorted(f"picture {n}, caption {k}" for n in range(6) if n != 1 for k in range(2))
    counted = feed.faults.summary()["little/train"]
    assert (counted["seen"], counted["bad"]) == (12, 2) and {one["id"] for one in counted["first"]} == {
        "little/train#2",
        "little/train#3",
    }
    strict = Mixture({"little": replace_tolerance(dataset, 0.0)}, batch_size=4, num_workers=0)
    with pytest.raises(PartialError) as caught:
        list(strict)
    assert caught.value.exit_code == 8


def replace_tolerance(dataset: Any, tolerance: float) -> Any:
    return replace(dataset, parts=replace(dataset.parts, config=replace(dataset.parts.config, tolerance=tolerance)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", [fetch_list, fetch_hosted])
def test_bodies_that_are_no_pictures_do_not_take_their_name(
    engine: Callable[..., Any],
    kind: str,
    server: Server,
    tmp_path: Path,
    orders: list[PassOrder],  # noqa: F811
) -> None:
    """A list of few hosts takes bytes as they come: there what only decoding shows is found by `verify --deep`."""
    web = WebList(server)
    web.add(GOOD)
    web.add(BAD[kind])
    job = make_job(tmp_path, web.write(tmp_path / "l.json"), threshold=0.1, passes=0)
    account = engine(job)
    by_first_bytes = kind not in ("bomb", "cut", "cut, with an end")
    if engine is fetch_list or by_first_bytes:
        assert account.present == 1 and not (job.target / "img_0001.jpg").exists()
        assert "img_0001.jpg" in account.lost.read_text()
    if by_first_bytes:
        (job.target / "img_0001.jpg").write_bytes(BAD[kind])  # of another tool
        for _ in range(2):
            assert engine(job).present == 1
        assert not (job.target / "img_0001.jpg").exists() or kind == "empty"


@pytest.mark.fault("I02", "I03", "I04")
def test_deep_verification_finds_every_picture_that_cannot_be_decoded(server: Server, tmp_path: Path) -> None:
    """They are what the archive holds: found, not fetched again for ever."""
    train = {f"train/{n}.jpg": encoded(pixels(n), "JPEG") for n in range(4)}
    train |= {f"train/x{n}.jpg": data for n, data in enumerate(BAD.values())}
    toy = Family(server, tmp_path / "root", train=train)
    toy.offer("train.json", rows_of(sorted(train)))
    cards = toy.cards()
    assert toy.prepare(cards, splits=["train"]).exit_code == 0
    options = toy.options(splits=["train"])
    assert verify(["toy"], options=options, cards=cards).exit_code == 0
    report = verify(["toy"], deep=True, options=options, cards=cards)
    assert {Path(one.path).name for one in report.findings} == {f"x{n}.jpg" for n in range(len(BAD))}
    assert report.exit_code == 5


FORMS: dict[str, Callable[[], bytes]] = {
    "CMYK": lambda: encoded(pixels(1), "JPEG", "CMYK"),
    "grey": lambda: encoded(pixels(1), "JPEG", "L"),
    "palette": lambda: encoded(pixels(1), "PNG", "P"),
    "alpha": lambda: encoded(pixels(1), "PNG", "RGBA"),
    "one bit": lambda: encoded(pixels(1), "PNG", "1"),
    "webp": lambda: encoded(pixels(1), "WEBP", lossless=True),
    "bmp": lambda: encoded(pixels(1), "BMP"),
}


@pytest.mark.fault("I05", "I10")
@pytest.mark.parametrize("form", FORMS)
def test_odd_forms_become_rgb_as_pillow_has_them(form: str) -> None:
    data = FORMS[form]()
    expected = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    for _ in range(2):
        assert np.array_equal(decode_rgb(data), expected)


@pytest.mark.fault("I05")
def test_sixteen_bits_rotation_and_movement() -> None:
    values = np.linspace(0, 65535, 64 * 48, dtype=np.uint16).reshape(48, 64)
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    assert np.array_equal(decode_rgb(buffer.getvalue())[..., 0], values >> 8)
    exif = Image.Exif()
    exif[274] = 6
    assert np.array_equal(decode_rgb(encoded(pixels(3), "JPEG", exif=exif)), decode_rgb(encoded(pixels(3), "JPEG")))
    frames, buffer = [Image.fromarray(pixels(n)).convert("P") for n in (4, 5)], BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode_rgb(buffer.getvalue()), np.asarray(frames[0].convert("RGB")))


@pytest.mark.fault("I07")
@pytest.mark.parametrize(("threshold", "code"), [(1.0, 5), (0.95, 8), (0.8, 0)])
def test_annotations_that_name_pictures_which_are_not_there(
    threshold: float, code: int, server: Server, tmp_path: Path
) -> None:
    toy = Family(server, tmp_path / "root", threshold=threshold)
    toy.offer("train.json", rows_of([*sorted(toy.train), "train/gone.jpg"]))
    report = toy.prepare()
    assert report.exit_code == code
    state = status(["toy"], toy.options(), toy.cards())[0]
    assert (state.expected, state.present, state.missing) == (13, 12, 1)
    assert (toy.root / "toy/.lavis_ext/missing.tsv").read_text().splitlines()[1:] == [
        "toy_caption\ttrain\ttrain/gone.jpg"
    ]


@pytest.mark.fault("I07")
def test_a_picture_that_is_missing_is_not_another_folders(tmp_path: Path) -> None:
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
    (tmp_path / "cat/002.jpg").write_bytes(GOOD)
    (tmp_path / "001.jpg").write_bytes(GOOD)
    store = ImageStore(tmp_path)
    for name in ("dog/002.jpg", "dog/001.jpg"):
        with pytest.raises(SampleError):
            store.read(name)
    assert store.read("elsewhere/cat/002.jpg") == store.read("away/001.jpg") == GOOD


ANNOTATIONS: dict[str, tuple[str, str]] = {
    "cut": ('[{"image": "a.jpg", "caption": "x"}, {"image": "b', ":1:"),
    "a number": ("7", ":1:1"),
    "a text": ('"words"', ":1:1"),
    "rows that are none": ('[{"image": "a.jpg", "caption": "x"}, 5]', "record 1"),
    "a list in a list": ("[[]]", "record 0"),
    "deep": ("[" * 100_000, ":1"),
    "nothing": ("", ":1"),
    "annotations that are none": ('{"annotations": 5}', ""),
}


@pytest.mark.fault("I08")
@pytest.mark.parametrize("kind", [kind for kind in ANNOTATIONS if kind != "annotations that are none"])
def test_annotations_that_cannot_be_read_say_where(kind: str, tmp_path: Path) -> None:
    text, where = ANNOTATIONS[kind]
    write_captions(tmp_path)
    path = tmp_path / "coco/annotations/train.json"
    path.write_text(text)
    with pytest.raises(IntegrityError) as caught:
        build_datasets(caption_config(), BuildContext(tmp_path, ["train"]))
    assert caught.value.exit_code == 5 and str(path) in str(caught.value) and where in str(caught.value)


@pytest.mark.fault("I08")
@pytest.mark.parametrize("wrapped", [False, True])
def test_minigpt4s_two_forms(wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"image_id": str(n), "caption": f"The image shows {n}."} for n in range(3)]
    write_json(tmp_path / "cc_sbu_align/filter_cap.json", {"annotations": rows} if wrapped else rows)
    for n in range(3):
        path = tmp_path / f"cc_sbu_align/image/{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(GOOD)
    monkeypatch.setenv("LAVIS_EXT_CACHE_ROOT", str(tmp_path))
    train = load_dataset("minigpt4_self_instruct_caption")["train"]
    assert len(train) == 3 and all(train[n]["image"].mode == "RGB" for n in range(3))


CAPTIONS: list[Any] = ["", None, " \n", "x" * (10 << 20), [], True]


@pytest.mark.fault("I09")
def test_captions_of_every_kind_are_cleaned_or_counted(tmp_path: Path) -> None:
    write_captions(tmp_path)
    name = f"val2014/COCO_val2014_{0:012d}.jpg"
    texts = [*CAPTIONS, "a\0b \ud83d c", "fine"]
    rows = [{"image": name, "caption": text, "image_id": n} for n, text in enumerate(texts)]
    write_json(tmp_path / "coco/annotations/train.json", rows)
    config = replace(caption_config(), tolerance=0.9)
    dataset = build_datasets(config, BuildContext(tmp_path, ["train"]))["train"]
    feed = Mixture({"little": dataset}, batch_size=2, num_workers=0)
    seen = {text for batch in feed for text in batch["text_input"]}
    assert len(seen) == 2 and "fine" in seen and not any("\0" in text or "\ud83d" in text for text in seen)
    counted = feed.faults.summary()["little/train"]
    assert (counted["seen"], counted["bad"]) == (len(texts), len(CAPTIONS))
    for text in seen:
        text.encode()


@pytest.mark.fault("I10")
def test_no_other_format_reaches_a_decoder_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A format list is given, so that none of its plug-ins that start programs is asked."""
    asked: list[Any] = []
    real = Image.open

    def opened(*args: Any, **more: Any) -> Any:
        asked.append(more.get("formats"))
        return real(*args, **more)

    monkeypatch.setattr(Image, "open", opened)
    for data in (BAD["svg"], BAD["tiff"], BAD["eps"], b"\x00\x00\x01\x00" + bytes(60), b"gimp xcf file\0" + bytes(60)):
        with pytest.raises(SampleError, match="not an image"):
            decode_rgb(data)
    decode_rgb(FORMS["palette"]())
    assert asked == [("JPEG", "PNG", "WEBP", "GIF", "BMP")] and "EPS" not in asked[0]
