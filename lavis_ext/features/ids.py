"""Image ids: kept as the text that a source writes, found by that text or by one explicit rule for numeric ones."""

from __future__ import annotations

import re
from hashlib import blake2b

_NUMERIC = re.compile(r"(?:.*[_/])?0*([0-9]{1,18})(?:\.(?:jpg|jpeg|png))?", re.DOTALL)


def key_of(image_id: str) -> str:
    """The key under which an id is found when its own text is not there.

    An id that is digits, or ends in `_` or `/` and digits, with or without an image's suffix, has those digits without
    leading zeros as its key: `9`, `000000000009` and `COCO_train2014_000000000009.jpg` are all `9`. Every other id is
    its own key (`nlvr2_train-10171-0-img0` stays whole).
    """
    match = _NUMERIC.fullmatch(image_id)
    return match.group(1) if match else image_id


def hash_of(text: str) -> int:
    """64 bits of BLAKE2b over the UTF-8 text, the same on every machine."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
