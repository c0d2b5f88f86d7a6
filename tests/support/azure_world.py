"""Oscar's and VinVL's containers, filled from the drawn world, for the stand-in of Azure and for Azurite."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote
from zipfile import ZipFile

from lavis_ext.demo.world import World
from tests.support.azure import ACCOUNT
from tests.world.export import export_world

WORLD = World(seed=17, train=10, val=4, test=4, hidden=4)
HOST = ".blob.core.windows.net/"
FOUND = "penzhanwu2", "sgg"
"""Where VinVL's detector lies: another account."""
CONTAINERS = {"oscar": ["oscar"], "vinvl": ["vinvl", FOUND[1]]}


@dataclass(frozen=True)
class Trees:
    """The demo's mirror, and each family's files by `/ACCOUNT/CONTAINER/BLOB`."""

    mirror: Path
    blobs: dict[str, dict[str, bytes]]

    def wanted(self, family: str) -> dict[str, bytes]:
        """The files that a family's folder must hold at the end, archives unpacked."""
        below = f"/{ACCOUNT}/{family}/"
        files: dict[str, bytes] = {}
        for path, data in self.blobs[family].items():
            name = path.removeprefix(below) if path.startswith(below) else f"detector/{path.rpartition('/')[2]}"
            if name.endswith(".zip"):
                with ZipFile(self.mirror / f"{ACCOUNT}{HOST}{family}/{name}") as archive:
                    folder = name.rpartition("/")[0]
                    members = [one for one in archive.namelist() if not one.endswith("/")]
                    files |= {f"{folder}/{one}": archive.read(one) for one in members}
            else:
                files[name] = data
        return files


def draw_trees(root: Path) -> Trees:
    """Both families of a drawn world, as their containers hold them."""
    export_world(WORLD, root, ["oscar", "vinvl"])
    blobs: dict[str, dict[str, bytes]] = {"oscar": {}, "vinvl": {}}
    for key in json.loads((root / "manifest.json").read_text())["files"]:
        account, _, path = unquote(key).partition(HOST)
        family = "oscar" if path.startswith("oscar/") else "vinvl"
        blobs[family][f"/{account}/{path}"] = (root / unquote(key)).read_bytes()
    return Trees(root, blobs)
