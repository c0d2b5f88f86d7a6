"""A small family of data sets with its archives, annotations and card, for tests of preparing."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from lavis_ext.common.config.cards import Artifact, Card, Cards, Mirror
from lavis_ext.common.config.schema import AnnotationConfig, BuildInfo, DatasetConfig, ImagesConfig
from lavis_ext.fetch import Policy
from lavis_ext.prepare import PrepareOptions, Report, prepare
from tests.support.fetching import FAST
from tests.support.server import Server, payload

HOST = "data.example.org"
ROOT = Path(__file__).parents[2]


def zip_bytes(files: dict[str, bytes], method: int = zipfile.ZIP_STORED, **attributes: Any) -> bytes:
    """A zip of these files; `attributes` are set on every entry."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return buffer.getvalue()


def tar_bytes(files: dict[str, bytes], how: str = "w", **attributes: Any) -> bytes:
    """A tar (`how`: w or w:gz) of these files; `attributes` are set on every entry."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=how) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def pictures(folder: str, count: int, size: int = 3000) -> dict[str, bytes]:
    """Names and bytes that pass for pictures (they are not decodable)."""
    return {f"{folder}/{n:06d}.jpg": payload(size + n, n) for n in range(count)}


def rows_of(names: list[str], captions: int = 1) -> bytes:
    """An annotation file: each picture with some captions."""
    rows = [{"image": name, "caption": f"about {name}", "image_id": name} for name in names for _ in range(captions)]
    return json.dumps(rows).encode()


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder, bookkeeping left out."""
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file() and ".lavis_ext" not in p.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@dataclass
class Family:
    """`toy`: archives train and val, data set `toy_caption` on both, offered as a mirror of data.example.org."""

    server: Server
    root: Path
    train: dict[str, bytes] = field(default_factory=lambda: pictures("train", 12))
    val: dict[str, bytes] = field(default_factory=lambda: pictures("val", 8))
    kind: str = "zip"
    declared: bool = True
    threshold: float = 1.0
    policy: Policy = FAST

    def __post_init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.archive("train", self.train)
        self.archive("val", self.val)
        self.offer("train.json", rows_of(sorted(self.train)))
        self.offer("val.json", rows_of(sorted(self.val), captions=2))

    def archive(self, name: str, files: dict[str, bytes]) -> None:
        """Offer an archive of these files."""
        packed = zip_bytes(files) if self.kind == "zip" else tar_bytes(files, "w:gz" if "gz" in self.kind else "w")
        self.offer(f"{name}.{self.kind}", packed)

    def offer(self, name: str, data: bytes) -> None:
        """Offer (or replace) a file of the host."""
        self.blobs[name] = data
        self.server.put(self.path(name), data)

    def path(self, name: str) -> str:
        """The path of a file on the server."""
        return f"/{HOST}/{name}"

    def artifact(self, name: str, unpack: str | None = None, **more: Any) -> Artifact:
        """The declaration of an offered file."""
        data = self.blobs[name]
        figures = {"size": len(data), "sha256": sha256(data).hexdigest()} if self.declared else {}
        storage = "toy/images" if unpack else f"toy/annotations/{name}"
        base = {"name": name.partition(".")[0] + ("" if unpack else "_rows"), "url": f"https://{HOST}/{name}"}
        return Artifact(**{**base, "storage": storage, "unpack": unpack, **figures, **more})  # type: ignore[arg-type]

    def cards(self, mirrors: dict[str, list[Mirror]] | None = None, **more: Any) -> Cards:
        """The card as it stands; `more` goes to the archives' declarations."""
        archives = [self.artifact(f"{split}.{self.kind}", self.kind, **more) for split in ("train", "val")]
        files = [*archives, self.artifact("train.json"), self.artifact("val.json")]
        artifacts = {a.name: replace(a, mirrors=(mirrors or {}).get(a.name, [])) for a in files}
        build = BuildInfo(
            annotations={s: AnnotationConfig(artifact=[f"{s}_rows"]) for s in ("train", "val")},
            images=ImagesConfig(storage="toy/images", artifacts={"train": ["train"], "val": ["val"]}),
        )
        dataset = DatasetConfig(name="toy_caption", builder="image_caption", family="toy", build_info=build)
        card = Card(
            family="toy",
            artifacts=artifacts,
            datasets={"toy_caption": {"default": dataset}},
            success_threshold=self.threshold,
        )
        return Cards({"toy": card})

    def options(self, **more: Any) -> PrepareOptions:
        """Into the root, from the server as the user's mirror."""
        base = {"cache_root": self.root, "mirror": self.server.base, "policy": self.policy, "reserve": 0}
        return PrepareOptions(**{**base, **more})

    def prepare(self, cards: Cards | None = None, names: tuple[str, ...] = ("toy",), **more: Any) -> Report:
        """`prepare toy`."""
        return prepare(names, self.options(**more), cards=cards or self.cards())

    @property
    def images(self) -> Path:
        """Where the archives are unpacked."""
        return self.root / "toy" / "images"

    def offer_manifest(self, names: list[str], equivalence: str = "subset") -> None:
        """A manifest at the mirror's root that lists these files."""
        listed = {f"{HOST}/{n}": {"size": len(b), "sha256": sha256(b).hexdigest()} for n, b in self.blobs.items()}
        files = {key: value for key, value in listed.items() if key.partition("/")[2] in names}
        text = json.dumps({"format": 1, "equivalence": equivalence, "files": files})
        self.server.put("/manifest.json", text.encode())

    def complete(self) -> bool:
        """Whether every picture is in its place, and nothing else but what was set aside."""
        files = {name: data for name, data in tree(self.images).items() if ".bad-" not in name}
        return files == {**self.train, **self.val}

    def write_card(self, folder: Path, **more: Any) -> Path:
        """The card as YAML in a folder of settings, with these declared figures; returns the folder."""
        place = folder / "datasets" / "toy"
        place.mkdir(parents=True, exist_ok=True)
        card = self.cards(**more).families["toy"]
        keys = ("url", "storage", "unpack", "size", "sha256", "unpacked_files", "unpacked_bytes")
        files = {name: {key: getattr(one, key) for key in keys} for name, one in card.artifacts.items()}
        said = {"family": "toy", "title": "Bälle ☃", "licence": "for nobody", "success_threshold": self.threshold}
        (place / "artifacts.yaml").write_text(json.dumps({**said, "artifacts": files}))
        rows = {split: {"artifact": f"{split}_rows"} for split in ("train", "val")}
        images = {"storage": "toy/images", "artifacts": {"train": ["train"], "val": ["val"]}}
        dataset = {"builder": "image_caption", "build_info": {"annotations": rows, "images": images}}
        (place / "defaults.yaml").write_text(json.dumps({"datasets": {"toy_caption": dataset}}))
        return folder

    def environment(self, configs: Path, **more: str) -> dict[str, str]:
        """What a user sets for a command: the cache root, the mirror and the folder of settings."""
        plain = {key: value for key, value in os.environ.items() if not key.startswith("LAVIS_EXT")}
        own = {"LAVIS_EXT_CACHE_ROOT": str(self.root), "LAVIS_EXT_MIRROR": self.server.base}
        return {**plain, **own, "LAVIS_EXT_CONFIGS": str(configs), "PYTHONPATH": str(ROOT), **more}
