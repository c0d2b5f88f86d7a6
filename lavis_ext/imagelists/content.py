"""Judges a body that came for an image: hosts' stand-ins, pages, cut and damaged files are no images."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from lavis_ext.readers.decode import decode_rgb
from lavis_ext.readers.faults import SampleError


class Unwanted(Exception):
    """A body that is not the image; the text begins with `placeholder` or `corrupt`."""


@dataclass(frozen=True)
class Inspector:
    """Called with a body and the URL it came from at last; raises Unwanted. Picklable.

    `placeholders` are sha256 digests of bodies, and parts of URLs to which hosts redirect requests for lost images.
    """

    placeholders: Collection[str] = ()

    def __call__(self, body: bytes, url: str) -> None:
        """Accept what the readers will be able to read, whole."""
        if hashlib.sha256(body).hexdigest() in self.placeholders or any(p in url for p in self.placeholders):
            raise Unwanted("placeholder")
        try:
            decode_rgb(body)
        except SampleError as error:
            raise Unwanted(f"corrupt: {error.reason if 'damaged' in error.why else error.why}") from error
