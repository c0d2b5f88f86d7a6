"""Any data set of pictures and texts as tar shards with manifests, on a disk or in a bucket.

A shard is a function of its rows, their pictures and the options: it is made again to the same bytes wherever a process
was killed. Pictures are copied as they lie; a sample's JSON holds its text under `caption` and everything else that a
sample of the data set has under `sample`; the shape `image_text_shards` reads it.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4
from zlib import crc32

import torch

from lavis_ext.common.config.cards import BOOKKEEPING
from lavis_ext.common.config.schema import DatasetConfig, ProcessorPair
from lavis_ext.common.errors import ConfigError, IntegrityError, LavisExtError, PartialError, UsageError
from lavis_ext.common.files import decode_json, disk_errors, expanded, open_file, read_object, write_json
from lavis_ext.datasets.buckets import is_remote
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.datasets.datasets.base_dataset import ImageTextDataset
from lavis_ext.datasets.readers.decode import decode_rgb
from lavis_ext.datasets.readers.faults import SampleError
from lavis_ext.fetch.lock import Ownership
from lavis_ext.fetch.objects import BUCKETS, listed, put, upload
from lavis_ext.fetch.remote import RemoteFile, fetch_bytes
from lavis_ext.fetch.safety import redact_url
from lavis_ext.fetch.session import scheme_of
from lavis_ext.fetch.transfer import Policy, Source
from lavis_ext.prepare.urls.cluster import Apply, cluster, require_installed
from lavis_ext.prepare.urls.job import Distributor
from lavis_ext.prepare.urls.shards import ShardManifest, is_published, publish, shard_fault, shard_path
from lavis_ext.processors import drawing_from

FORMAT = 1
FIRST_FAULTS = 20
READ = 1 << 22
BATCH = 1 << 20
"""Bytes that are written, then read back, at a time: they stay in the processor's cache meanwhile."""
STALE = (".[0-9]*.tar.tmp", ".[0-9]*.manifest.json.*.tmp", ".pack.json.*.tmp")
MAGIC = {
    **{"jpg": b"\xff\xd8\xff", "png": b"\x89PNG", "webp": b"RIFF", "gif": b"GIF8", "bmp": b"BM"},
    **{"tif": b"II*\0", "tiff": b"MM\0*"},
}  # fmt: skip
"""Suffix → first bytes."""
_EMPTY = bytearray(tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT))
_EMPTY[124:135] = bytes(11)
_EMPTY[148:156] = bytes(8)
PLAIN, PLAIN_SUM = bytes(_EMPTY), sum(_EMPTY) + 8 * 0x20
"""The header of a file without its name, size and checksum, and what that checksum begins with."""

ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=lambda one: one.tolist())
"""Made once: `json.dumps` makes one a call."""


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How `pack` writes; a picture is re-encoded only where `encode` or `shorter_side` asks for it."""

    split: str = "train"
    samples_per_shard: int = 10_000
    max_samples: int | None = None
    encode: str = ""
    """jpg, png or webp; "": bytes as they lie."""
    quality: int = 90
    shorter_side: int | None = None
    """Pixels to which larger pictures are made smaller."""
    seed: int = 0
    """Of what a data set draws at random for a sample: a caption of several."""
    jobs: int = 1
    """Shards that are made at a time."""
    distributor: Distributor = "multiprocessing"
    """Threads of this process, or Spark's or Ray's processes, perhaps on other machines that have the same folders."""
    deep: bool = False
    """Hash shards that are there already, too."""

    def check(self) -> None:
        """Raise UsageError for values out of range, and for a distributor that is not installed."""
        require_installed(self.distributor)
        counts = {"samples-per-shard": self.samples_per_shard, "jobs": self.jobs, "quality": self.quality}
        more = {"max-samples": self.max_samples, "shorter-side": self.shorter_side}
        for name, value in (counts | {name: value for name, value in more.items() if value is not None}).items():
            if value < 1:
                raise UsageError(f"--{name} {value}", "must be at least 1", "leave it out for the default")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What of it the bytes depend on."""
        names = ("encode", "quality", "shorter_side", "seed") if self.encode or self.shorter_side else ("seed",)
        return {"format": FORMAT, **{name: getattr(self, name) for name in names}}


@dataclass
class PackReport:
    """What lies at `out`: samples and shards, `made` of them now, and the samples that could not be packed."""

    dataset: str
    split: str
    out: str
    samples: int = 0
    shards: int = 0
    made: int = 0
    bytes: int = 0
    lost: int = 0
    """Samples that are in no shard; `faults` and `first` are of the shards that were made now."""
    faults: Counter[str] = field(default_factory=Counter)
    first: list[dict[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "faults": dict(self.faults)}


def pack(config: DatasetConfig, out: str, root: Path, options: PackOptions, told: Callable[[str], None]) -> PackReport:
    """Write one split of a data set to `out`, a folder or `s3://BUCKET/FOLDER`; whole shards are not made again.

    Raises ConfigError for a data set whose samples have not one picture, NotPreparedError, PartialError where more
    samples fail than the data set tolerates, IntegrityError where what was written is not what lies there, OwnedError.
    """
    options.check()
    remote = is_remote(out)
    if remote and scheme_of(out) not in BUCKETS:
        raise UsageError(redact_url(out), "cannot be written to", f"name a folder, or {'://…, '.join(BUCKETS)}://…")
    dataset = opened(config, root, options)
    target = Target.of(out.rstrip("/") if remote else str(expanded(out)), root)
    report = PackReport(config.name, options.split, redact_url(out) if remote else str(expanded(out)))
    count = -(-len(dataset) // options.samples_per_shard)
    with disk_errors(target.folder), ExitStack() as stack:
        target.folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(Ownership(target.folder / "pack.owner", target.folder, Policy(owner_wait=0, owner_stall=0)))
        target.clean()
        _own_shards(target, config, options, count)
        if options.distributor == "multiprocessing":
            apply: Apply = stack.enter_context(ThreadPoolExecutor(options.jobs)).map
        else:
            apply = stack.enter_context(cluster(options.distributor, options.jobs))
        work = apply(partial(attempt, dataset, target, options), range(count))
        for number, (manifest, faults, made) in enumerate(map(done, work)):
            report.samples, report.bytes = report.samples + manifest.samples, report.bytes + manifest.bytes
            report.shards, report.made = report.shards + 1, report.made + made
            report.faults.update(fault.reason for fault in faults)
            report.first += [{"id": one.sample_id, "path": one.path, "why": one.why} for one in faults]
            del report.first[FIRST_FAULTS:]
            told(f"{number + 1} of {count} shards, {report.samples:,} samples")
        target.clean()
        report.lost = len(dataset) - report.samples
        whole = {name: getattr(report, name) for name in ("dataset", "split", "samples", "lost", "shards", "bytes")}
        target.write("pack.json", {"format": FORMAT, **whole, **options.identity})
    if report.lost > config.tolerance * len(dataset) or not report.samples:
        why = "".join(f", {reason} {count}x" for reason, count in report.faults.most_common(3))
        what = f"{report.lost} of {len(dataset)} samples could not be packed{why}"
        way_out = f"run `lavis-ext verify {config.name} --repair`, or raise `datasets.{config.name}.tolerance`"
        raise PartialError(f"{config.name}/{options.split}", what, way_out)
    return report


def _own_shards(target: Target, config: DatasetConfig, options: PackOptions, count: int) -> None:
    """Before shards are made: raise UsageError where those of somebody else would be replaced by them.

    `pack.json` says from the first moment whose they are, so that a pack that was killed knows its own again.
    """
    said = target.read("pack.json")
    whose = {"dataset": config.name, "split": options.split}
    if said.get("format") == FORMAT and "dataset" in said:
        if {name: said.get(name) for name in whose} != whose:
            what = f"holds the shards of {said['dataset']}/{said.get('split')}"
            raise UsageError(target.shown, what, "name another place, or remove them")
        return
    there = target.files({shard_path(target.folder, number).name for number in range(count)} | {"pack.json"})
    if there:
        what = f"has {there[0]} already, which `pack` did not write"
        raise UsageError(target.shown, what, "name another place: nothing there is replaced")
    target.write("pack.json", {"format": FORMAT, **whose})


def opened(config: DatasetConfig, root: Path, options: PackOptions) -> ImageTextDataset:
    """The split without processors, and without what is drawn anew at each reading; raises ConfigError."""
    args = {name: value for name, value in config.args.items() if name not in ("prefix_split", "swap")}
    limits = config.max_samples if options.max_samples is None else {options.split: options.max_samples}
    plain = replace(
        config, args=args, vis_processor=ProcessorPair(), text_processor=ProcessorPair(), max_samples=limits
    )
    built = build_datasets(plain, BuildContext(root, [options.split]))
    dataset = built.get(options.split)
    if not isinstance(dataset, ImageTextDataset) or type(dataset).load is not ImageTextDataset.load:
        what = (
            f"a sample of the shape '{config.builder}' is not one picture with its texts"
            if dataset
            else "no such split"
        )
        raise ConfigError(f"{config.name}/{options.split}", what, "pack another data set")
    return dataset


@dataclass(frozen=True)
class Target:
    """Where shards go: a folder, or a bucket by way of a folder in which each waits until it is uploaded."""

    folder: Path
    url: str = ""

    @classmethod
    def of(cls, out: str, root: Path) -> Target:
        """The target of an address or a path."""
        if not is_remote(out):
            return cls(Path(out))
        return cls(Path(root, BOOKKEEPING, "pack", sha256(out.encode()).hexdigest()[:16]), out)

    def clean(self) -> None:
        """Remove what processes that were killed have half written."""
        for stale in (path for form in STALE for path in self.folder.glob(form)):
            stale.unlink(missing_ok=True)

    @property
    def shown(self) -> str:
        """The place without secrets, for messages."""
        return redact_url(self.url) if self.url else str(self.folder)

    def read(self, name: str) -> dict[str, Any]:
        """A small JSON beside the shards; empty where there is none."""
        if not self.url:
            return read_object(self.folder / name)
        try:
            found = decode_json(fetch_bytes(Source(f"{self.url}/{name}")) or b"null")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def files(self, names: Iterable[str]) -> list[str]:
        """Those of some names that are there, sorted."""
        if not self.url:
            return sorted(name for name in names if os.path.lexists(self.folder / name))
        there = {one.name for one in listed(f"{self.url}/")}
        return sorted(there & set(names))

    def manifest(self, number: int, input_hash: str, deep: bool) -> ShardManifest | None:
        """The manifest of a shard that is there, made of these rows, None where it has to be made (again)."""
        tar = shard_path(self.folder, number)
        if not self.url:
            if not is_published(tar, input_hash) or (deep and shard_fault(tar)):
                return None
            return ShardManifest.read(tar)
        try:
            found = ShardManifest(**decode_json(fetch_bytes(Source(f"{self.url}/{tar.stem}.manifest.json")) or b"null"))
        except (TypeError, ValueError):
            return None
        if found.input_hash != input_hash or (deep and self._hash(tar.name) != found.sha256):
            return None
        return found if self._size(tar.name) == found.bytes else None

    def publish(self, finished: Path, number: int, manifest: ShardManifest) -> None:
        """Give a finished shard its place, its manifest last; raises IntegrityError where it is not as written."""
        tar = shard_path(self.folder, number)
        if not self.url:
            publish(finished, tar, manifest)
            return
        upload(f"{self.url}/{tar.name}", finished)
        if self._hash(tar.name) != manifest.sha256:
            raise IntegrityError(redact_url(f"{self.url}/{tar.name}"), "is not what was uploaded", "run again")
        put(f"{self.url}/{tar.stem}.manifest.json", json.dumps(asdict(manifest)).encode())
        finished.unlink()

    def write(self, name: str, value: dict[str, Any]) -> None:
        """A small JSON beside the shards."""
        if self.url:
            put(f"{self.url}/{name}", json.dumps(value).encode())
        else:
            write_json(self.folder / name, value)

    def _size(self, name: str) -> int:
        try:
            with RemoteFile(f"{self.url}/{name}", ahead=1) as file:
                return file.size
        except IntegrityError:
            return -1

    def _hash(self, name: str) -> str:
        digest = sha256()
        with RemoteFile(f"{self.url}/{name}", ahead=1) as file:
            for start in range(0, file.size, READ):
                digest.update(file.read_ranges([(start, min(file.size, start + READ))])[0])
        return digest.hexdigest()


Packed = tuple[ShardManifest, list[SampleError], bool]


def attempt(dataset: ImageTextDataset, target: Target, options: PackOptions, number: int) -> Packed | Exception:
    """`pack_shard` on whatever machine; its error is a value, which a cluster hands on as it is."""
    try:
        with disk_errors(target.folder):
            target.folder.mkdir(parents=True, exist_ok=True)  # of a bucket, on another machine
            return pack_shard(dataset, number, target, options)
    except LavisExtError as error:
        return error


def done(made: Packed | Exception) -> Packed:
    """What `attempt` gave; raises its error."""
    if isinstance(made, Exception):
        raise made
    return made


def pack_shard(dataset: ImageTextDataset, number: int, target: Target, options: PackOptions) -> Packed:
    """One shard: its manifest, the samples that could not be packed, and whether it was made now."""
    first = number * options.samples_per_shard
    rows = range(first, min(len(dataset), first + options.samples_per_shard))
    digest = sha256(json.dumps([options.identity, dataset.parts.config.builder, dataset.split]).encode())
    for index in rows:
        digest.update(_json(dataset.row(index)))
    input_hash = digest.hexdigest()
    there = target.manifest(number, input_hash, options.deep)
    if there is not None:
        return there, [], False
    # a name of its own: a machine that a cluster has given up may still be writing
    temporary = target.folder / f".{number:05d}.{uuid4().hex[:12]}.tar.tmp"
    faults: list[SampleError] = []
    with temporary.open("wb") as file, ShardDigests(temporary) as behind:
        held: list[bytes] = []
        samples: list[tuple[str, list[int]]] = []
        for index in rows:
            try:
                members = list(members_of(dataset, index, options))
            except SampleError as error:
                faults.append(error)
                continue
            for name, data in members:
                held += (_header(name, len(data)), data, bytes(-len(data) % tarfile.BLOCKSIZE))
            samples.append((members[0][0].partition(".")[0], [len(data) for _, data in members]))
            if sum(map(len, held)) >= BATCH:
                behind.follow(_write(file, held), samples)
                held, samples = [], []
        held.append(bytes(2 * tarfile.BLOCKSIZE))
        held.append(bytes(-(file.tell() + sum(map(len, held))) % tarfile.RECORDSIZE))
        behind.follow(_write(file, held), samples)
        manifest = behind.manifest(f"{number:05d}", input_hash)
    target.publish(temporary, number, manifest)
    return manifest, faults, True


def _write(file: BinaryIO, held: list[bytes]) -> int:
    """Write pieces in one call (tarfile takes two a member) so that they can be read back; how many bytes they are."""
    whole = b"".join(held)
    file.write(whole)
    file.flush()
    return len(whole)


class ShardDigests:
    """The digests of a shard, from its bytes as they are read back, in a thread one batch behind its writer."""

    def __init__(self, path: Path) -> None:
        self._file, self._thread, self._last = open_file(path), ThreadPoolExecutor(1), Future[None]()
        self._last.set_result(None)
        self._path, self._digest, self._size, self._buffer = path, sha256(), 0, bytearray()
        self._keys: list[str] = []
        self._crcs: list[str] = []

    def __enter__(self) -> ShardDigests:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self._file.close()

    def follow(self, size: int, samples: Sequence[tuple[str, list[int]]]) -> None:
        """So many bytes more are written: samples, each with its key and the sizes of its members, and the tar's end.

        Raises what has gone wrong with the batch before.
        """
        self._last.result()
        self._last = self._thread.submit(self._take, size, samples)

    def _take(self, size: int, samples: Sequence[tuple[str, list[int]]]) -> None:
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        data = memoryview(self._buffer)[:size]
        if self._file.readinto(data) != size:
            raise IntegrityError(str(self._path), "is shorter than what was written", "run again: it is made again")
        self._digest.update(data)
        at = 0
        for key, sizes in samples:
            crc = 0
            for length in sizes:
                at += tarfile.BLOCKSIZE
                crc = crc32(data[at : at + length], crc)
                at += length + -length % tarfile.BLOCKSIZE
            self._keys.append(key)
            self._crcs.append(f"{crc:08x}")
        self._size += size

    def manifest(self, shard: str, input_hash: str) -> ShardManifest:
        """The manifest, once all is read back: what `describe` makes of the finished file."""
        self._last.result()
        first, last = (self._keys[0], self._keys[-1]) if self._keys else ("", "")
        digest, crcs = self._digest.hexdigest(), "".join(self._crcs)
        return ShardManifest(shard, self._size, digest, len(self._keys), first, last, input_hash, crcs)


def _header(name: str, size: int) -> bytes:
    """What `tarfile.TarInfo(name).tobuf` makes in as much time as reading the picture takes; names of 100 bytes."""
    title, length = name.encode("ascii"), b"%011o" % size
    head = bytearray(PLAIN)
    head[: len(title)] = title
    head[124:135] = length
    head[148:156] = b"%06o\0 " % (PLAIN_SUM + sum(title) + sum(length))
    return bytes(head)


def members_of(dataset: ImageTextDataset, index: int, options: PackOptions) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of a sample's picture and JSON; raises SampleError for one that a reader could not use."""
    row = dataset.row(index)
    rng = torch.Generator().manual_seed((options.seed * 1_000_003 + index) % (1 << 63))
    with drawing_from(rng):
        sample = {key: value for key, value in dataset.texts(row, index, rng).items() if key != "image"}
    name = dataset.image_name(row)
    try:
        place, member = dataset.images.find(name)
        data = place.read(member)
        if options.encode or options.shorter_side:  # else nothing is decoded: a reader counts what is damaged
            pixels = decode_rgb(data, path=place.where(member))
            if options.encode or min(pixels.shape[:2]) > (options.shorter_side or 0):
                data = _encoded(pixels, options)
    except SampleError as error:
        raise SampleError(dataset.sample_id(index), error.path, error.why) from error
    kind = next((kind for kind, magic in MAGIC.items() if data.startswith(magic)), None)
    if kind is None:
        raise dataset.fault(index, "image is of a form that shards do not hold")
    text = sample.get("text_input")
    record = {
        "key": f"{index:09d}",
        "image": name,
        **({"caption": text} if isinstance(text, str) else {}),
        "sample": sample,
    }
    yield f"{index:09d}.{kind}", data
    yield f"{index:09d}.json", _json(record)


def _encoded(pixels: Any, options: PackOptions) -> bytes:
    from PIL import Image

    image, side = Image.fromarray(pixels), options.shorter_side
    if side and min(image.size) > side:
        scale = side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    form = {"": "JPEG", "jpg": "JPEG"}.get(options.encode, options.encode.upper())
    image.save(buffer, form, **({} if form == "PNG" else {"quality": options.quality}))
    return buffer.getvalue()


def _json(value: Any) -> bytes:
    """JSON in one spelling; tensors and arrays as lists."""
    return ENCODER.encode(value).encode("utf-8", "surrogatepass")
