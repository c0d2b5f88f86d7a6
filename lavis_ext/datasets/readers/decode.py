"""Encoded bytes of a picture become uint8 [H,W,3] RGB, equal to `Image.open(…).convert("RGB")`, or a SampleError."""

from __future__ import annotations

import re
from io import BytesIO
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from lavis_ext.datasets.readers.faults import SampleError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 120_000_000
NOT_IMAGES = (
    (b"<!doctype html", "an HTML page instead of an image"),
    (b"<html", "an HTML page instead of an image"),
    (b"<svg", "an SVG drawing, which is not read here"),
    (b"<?xml", "an XML document instead of an image"),
    (b"{", "a JSON document instead of an image"),
    (b"%!ps", "a PostScript document, which is not read here"),
    (b"%pdf", "a PDF document, which is not read here"),
    (b"ii*\0", "a TIFF file, which is not read here"),
    (b"mm\0*", "a TIFF file, which is not read here"),
)


# No DCT-scaled decoding: it is faster for small targets, but costs 1.5 to 4 of 255 against LAVIS' pixels.
def decode_rgb(data: bytes, sample_id: str = "?", path: str = "?") -> np.ndarray:
    """A writable uint8 array [H,W,3].

    The first bytes give the kind and the header the size, before anything is decoded. libjpeg-turbo decodes JPEG
    (both it and Pillow use the accurate DCT, so the pixels are equal), Pillow all else: CMYK JPEG, PNG, WebP, the first
    frame of GIF, BMP. EXIF rotation is ignored, as in LAVIS. Raises SampleError for an empty file, something that
    is not an image, more than `MAX_PIXELS` pixels, and damaged or cut off data.
    """
    fault = sniff_fault(data)
    if fault:
        raise SampleError(sample_id, path, fault)
    try:
        array = _decode_jpeg(data) if data[:3] == b"\xff\xd8\xff" else None
        return _decode_pillow(data) if array is None else array
    except SizeError as error:
        raise SampleError(sample_id, path, f"image is too large: {error}") from error
    except Exception as error:  # decoders of damaged data raise whatever their libraries do
        what = re.sub(r" ?<[^<>]* object at 0x\w+>", "", str(error))  # Pillow names the object that it was given
        raise SampleError(sample_id, path, f"image is damaged or cut off: {what}") from error


class SizeError(ValueError):
    """More pixels than are decoded here."""


def sniff_fault(data: bytes) -> str:
    """Why these bytes cannot be a supported image, going by the first of them; "" if they may be one."""
    if not data:
        return "image file is empty"
    if (
        data[:3] == b"\xff\xd8\xff"
        or data[:8] == b"\x89PNG\r\n\x1a\n"
        or data[:4] in (b"GIF8", b"RIFF")
        or data[:2] == b"BM"
    ):
        return ""
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next(
        (f"not an image: {what}" for magic, what in NOT_IMAGES if start.startswith(magic)),
        "not an image: unknown format",
    )


def check_size(width: int, height: int) -> None:
    """Raise SizeError for a picture that would be a decompression bomb."""
    if width * height > MAX_PIXELS:
        raise SizeError(f"{width}x{height} pixels, at most {MAX_PIXELS:,} are decoded")


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """The pixels, or None for what Pillow decodes instead: CMYK, and data that libjpeg-turbo warns about."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError:
        return None
    check_size(width, height)
    if colours not in ("YCbCr", "Gray", "GRAY", "RGB"):
        return None
    try:
        array: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError as error:
        if (
            # libjpeg-turbo's text: simplejpeg raises ValueError for everything, without a code
            "premature end" in str(error).lower()
        ):  # Pillow would fill the missing part with grey if an end marker follows
            raise
        return None
    return array


PNG = b"\x89PNG\r\n\x1a\n"
UNREAD_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


def without_texts(data: bytes) -> bytes:
    """A PNG without its texts and its colour profile: megabytes there, at which Pillow stops, change no pixel.

    Anything else, and a PNG whose chunks do not follow one another, is given back as it is.
    """
    if not data.startswith(PNG) or not any(kind in data for kind in UNREAD_CHUNKS):
        return data
    kept, at = [PNG], len(PNG)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, stop = data[at + 4 : at + 8], at + 12 + length
        if kind not in UNREAD_CHUNKS:
            kept.append(data[at:stop])
        elif stop > len(data):
            return data
        at = stop
    return b"".join((*kept, data[at:]))


def _decode_pillow(data: bytes) -> np.ndarray:
    try:
        image = Image.open(BytesIO(without_texts(data)), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise SizeError(str(error)) from error
    with image:
        check_size(*image.size)
        return np.array(_to_eight_bits(image).convert("RGB"))


def _to_eight_bits(image: Any) -> Any:
    """Reduce 16-bit grey to its high byte; Pillow's own conversion would clip it to white."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray((values >> 8 if values.max(initial=0) > 255 else values).clip(0, 255).astype(np.uint8))
