"""Oscar's and VinVL's files of a small world, opened as their readers would."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
import yaml

from lavis_ext.demo.mirror import url_of
from lavis_ext.demo.world import Scene, World
from lavis_ext.features.formats.restricted import load_plain
from lavis_ext.fetch.mirrors import mirror_path
from tests.world.export import export_world

WORLD = World(seed=13, train=36, val=8, test=10, hidden=6)
SCENES: dict[int, Scene] = {scene.id: scene for scene in WORLD}


def open_member(name: str, data: bytes) -> Any:
    """A file as a value, by the ending of its name."""
    if name.endswith((".pt", ".bin", ".pth")) and "training_args" not in name:
        return torch.load(io.BytesIO(data), weights_only=True)
    if name.endswith(".pkl"):
        return load_plain(data, name)
    if name.endswith(".json"):
        return json.loads(data)
    if name.endswith(".yaml"):
        return yaml.safe_load(data)
    return data


class Published:
    """A mirror of both families."""

    def __init__(self, root: Path) -> None:
        self.root = root
        export_world(WORLD, root, ["oscar", "vinvl"])

    def names(self, artifact: str) -> list[str]:
        """The files of an archive of Oscar, or of a folder of VinVL."""
        place = self.root / mirror_path(url_of(artifact))
        if place.is_dir():
            return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
        with ZipFile(place) as archive:
            assert archive.testzip() is None
            return sorted(name for name in archive.namelist() if not name.endswith("/"))

    def read(self, artifact: str, name: str = "") -> bytes:
        """A file of an archive or folder."""
        place = self.root / mirror_path(url_of(artifact))
        if place.suffix == ".zip":
            with ZipFile(place) as archive:
                return archive.read(name)
        return (place / name if name else place).read_bytes()

    def load(self, artifact: str, name: str = "") -> Any:
        """That file as a value."""
        return open_member(name or url_of(artifact), self.read(artifact, name))
