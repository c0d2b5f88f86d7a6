"""Pixels equal Pillow's to the last bit; what is no picture, or too large, or cut off, is an error in words."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from lavis_ext.datasets.readers import SampleError, decode, decode_rgb
from tests.support.pictures import PHOTOS, encoded, needs_photos, pixels


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("options", [{"quality": 90}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}])
@pytest.mark.parametrize("shape", [(48, 64), (37, 53), (1, 1), (8, 200)])
def test_jpeg_equals_pillow(options: dict[str, int], shape: tuple[int, int]) -> None:
    data = encoded(pixels(1, *shape), "JPEG", **options)
    array = decode_rgb(data)
    assert array.dtype == np.uint8
    assert array.flags.writeable
    assert np.array_equal(array, pillow(data))


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("PNG", "LA"),
        ("WEBP", "RGB"), ("WEBP", "RGBA"), ("GIF", "P"), ("BMP", "RGB"),
    ],
)  # fmt: skip
def test_other_forms_equal_pillow(form: str, mode: str) -> None:
    data = encoded(pixels(2), form, mode)
    assert np.array_equal(decode_rgb(data), pillow(data))


@needs_photos
def test_real_photographs_equal_pillow() -> None:
    for path in sorted(PHOTOS.glob("*.jpg"))[:25]:
        assert np.array_equal(decode_rgb(path.read_bytes()), pillow(path.read_bytes())), path.name


def test_sixteen_bits_lose_the_low_byte() -> None:
    grey = (np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000).astype(np.uint16)
    buffer = BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    assert np.array_equal(decode_rgb(buffer.getvalue())[..., 0], grey >> 8)


def test_rotation_tags_are_left_alone() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(pixels(3), "JPEG", exif=exif)
    assert decode_rgb(data).shape == (48, 64, 3)


def test_the_first_frame_of_a_moving_picture() -> None:
    buffer = BytesIO()
    frames = [Image.fromarray(pixels(n)).convert("P") for n in (4, 5)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode_rgb(buffer.getvalue()), pillow(buffer.getvalue()))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "image file is empty"),
        (b"<!DOCTYPE html><html>503", "not an image: an HTML page"),
        (b"\n  <HTML>", "not an image: an HTML page"),
        (b"<svg xmlns=", "not an image: an SVG"),
        (b'<?xml version="1.0"?><Error>', "not an image: an XML"),
        (b'{"error": 1}', "not an image: a JSON"),
        (b"%!PS-Adobe-3.0 EPSF", "not an image: a PostScript"),
        (b"II*\0....", "not an image: a TIFF"),
        (b"hello", "not an image: unknown format"),
        (b"\xff\xd8\xff", "image is damaged"),
        (b"\x89PNG\r\n\x1a\n", "image is damaged"),
        (b"RIFF....WAVE", "image is damaged"),
        (b"BM", "image is damaged"),
    ],
)
def test_what_is_no_picture(data: bytes, why: str) -> None:
    with pytest.raises(SampleError) as error:
        decode_rgb(data, "coco/train#1", "/x/1.jpg")
    assert error.value.why.startswith(why)
    assert (error.value.sample_id, error.value.path) == ("coco/train#1", "/x/1.jpg")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("ending", [b"", b"\xff\xd9"])
def test_cut_off_pictures_are_errors(form: str, share: float, ending: bytes) -> None:
    data = encoded(pixels(6), form)
    with pytest.raises(SampleError, match="damaged or cut off"):
        decode_rgb(data[: int(len(data) * share)] + ending)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def test_bombs_are_refused_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    idat = b"IDAT" + zlib.compress(b"")
    bomb = png_header(50_000, 50_000) + struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))
    with pytest.raises(SampleError, match="too large"):
        decode_rgb(bomb)
    monkeypatch.setattr(decode, "MAX_PIXELS", 48 * 64 - 1)
    for form in ("JPEG", "PNG", "GIF"):
        with pytest.raises(SampleError, match=r"too large: 64x48"):
            decode_rgb(encoded(pixels(7), form))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_bytes_raise_anything_else(data: st.DataObject) -> None:
    start = data.draw(st.sampled_from([encoded(pixels(8, 12, 12), f) for f in ("JPEG", "PNG", "WEBP", "GIF", "BMP")]))
    damaged = bytearray(start)
    for position in data.draw(st.lists(st.integers(0, len(start) - 1), max_size=6)):
        damaged[position] = data.draw(st.integers(0, 255))
    try:
        array = decode_rgb(bytes(damaged))
    except SampleError:
        return
    assert array.dtype == np.uint8
    assert array.shape[2] == 3


def test_extra_bytes_do_no_harm(tmp_path: Path) -> None:
    data = encoded(pixels(9))
    assert np.array_equal(decode_rgb(data + b"trailing junk" * 9), decode_rgb(data))


@pytest.mark.parametrize("kind", ["zTXt", "tEXt", "iTXt"])
def test_a_png_with_megabytes_of_text_is_whole(kind: str) -> None:
    info = PngImagePlugin.PngInfo()
    text = "x" * (3 << 20)
    info.add_itxt("prompt", text, zip=True) if kind == "iTXt" else info.add_text("prompt", text, zip=kind == "zTXt")
    buffer = BytesIO()
    Image.fromarray(pixels(4)).save(buffer, "PNG", pnginfo=info)
    assert kind.encode() in buffer.getvalue()
    assert np.array_equal(decode_rgb(buffer.getvalue()), pixels(4))
    with pytest.raises(SampleError, match="damaged or cut off"):
        decode_rgb(buffer.getvalue()[:-40])
