"""A list of images on a loopback server that behaves as the open web does: dead links, stand-ins, pages, cut bodies."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lavis_ext.common.config.cards import ImageList
from lavis_ext.fetch import Policy
from lavis_ext.prepare.urls import ListJob
from tests.support.server import Fault, Server

QUICK = Policy(backoff=0.01, retries=1, stall_timeout=20.0, connect_timeout=20.0, fsync=False, allow_private=True)


def picture(seed: int, size: int = 48, kind: str = "JPEG") -> bytes:
    """An image of noise, the same for the same seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


PLACEHOLDER = picture(-1 & 0xFFFF, 16)


@dataclass
class WebList:
    """Rows for an annotation file, and by id what should become of each: "" for an image, else the reason."""

    server: Server
    rows: list[dict[str, Any]] = field(default_factory=list)
    fates: dict[str, str] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)

    def add(self, body: bytes, *faults: Fault, fate: str = "", url: str = "") -> str:
        """One more row: what its URL offers, what goes wrong with it, what should become of it; returns the URL."""
        number = len(self.rows)
        name = f"img_{number:04d}.jpg"
        link = url or self.server.put(f"/photos/{number}/{name}", body, content_type="image/jpeg")
        if faults:
            self.server.script(f"/photos/{number}/{name}", *faults)
        self.rows.append({"image": f"sbu/{name}", "caption": f"picture {number}", "url": link})
        self.fates[f"sbu/{name}"] = fate
        self.bodies[f"sbu/{name}"] = body
        return link

    def fill(self, count: int) -> None:
        """Rows of all kinds until there are `count`, most of them good."""
        while len(self.rows) < count:
            number = len(self.rows)
            body = picture(number)
            kind = number % 20
            if kind == 3:
                self.add(body, Fault(status=404), fate="HTTP 404")
            elif kind == 5:
                self.add(PLACEHOLDER, fate="placeholder")
            elif kind == 7:
                self.add(b"<!doctype html><title>gone</title>", fate="not an image: an HTML page instead of an image")
            elif kind == 9:
                self.add(body * 400, fate="refused: more than 600000 bytes")
            elif kind == 11:
                self.add(body[: len(body) // 2], fate="image is damaged or cut off")
            elif kind == 13:
                self.add(body, Fault(times=1, status=503))
            elif kind == 15:
                self.add(body, Fault(times=1, cut_after=300))
            else:
                self.add(body)

    @property
    def good(self) -> list[str]:
        """Ids of rows that have an image."""
        return [id for id, fate in self.fates.items() if not fate]

    def write(self, path: Path) -> Path:
        """The annotation file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.rows), encoding="utf-8")
        return path


def make_job(folder: Path, annotation: Path, **changes: Any) -> ListJob:
    """A job for the loopback: files by name, quick, small."""
    spec = {
        "storage": "sbu/images",
        "engine": "img2dataset",
        "path": "{image.name}",
        "id_key": ["image"],
        "placeholders": [hashlib.sha256(PLACEHOLDER).hexdigest()],
        "samples_per_shard": 50,
    }
    spec.update(changes.pop("spec", {}))
    settings = {
        "name": "sbu",
        "annotations": (annotation,),
        "target": folder / "images",
        "work": folder / ".lavis_ext" / "lists" / "sbu",
        "spec": ImageList(**spec),
        "threshold": 0.5,
        "policy": QUICK,
        "processes": 1,
        "threads": 16,
        "timeout": 2.0,
        "deadline": 5.0,
        "max_bytes": 600_000,
        "backoff": 0.01,
        "stall": 240.0,
    }
    return ListJob(**{**settings, **changes})
