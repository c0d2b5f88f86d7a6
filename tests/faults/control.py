"""The control of our injections, the same faults against published tools: `python -m tests.faults.control`.

A test that a fault is survived says nothing where the fault was none. Each one here is injected into a published
downloader or unpacker (LAVIS' and torchvision's helpers, gdown, pooch without a hash, wget -c, curl -C -, img2dataset,
webdataset), then into ours. Every client is run twice: under the fault, then with a healthy server.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.server import Fault, Server, payload
from tests.support.toyfamily import tar_bytes, zip_bytes

ROOT = Path(__file__).parents[2]
PACKAGES = ["salesforce-lavis==1.0.2", "iopath", "portalocker", "torchvision", "pooch", "platformdirs"]
"""Installed without what they depend on: that is in the tests' own environment, which the control's one sees."""
WANTED = 25
LIMIT, PATIENCE = 4.0, 60.0
"""Seconds after which a client is said to hang under a fault; and with a healthy server, and ours, which end before."""
DATA = zip_bytes({"a.jpg": payload(200_000), "b.jpg": payload(56_000, 1)})
HALF = len(DATA) // 2
OTHER = payload(len(DATA), seed=9)
HTML = b"<!DOCTYPE html><html>Quota exceeded</html>"


@dataclass(frozen=True)
class Download:
    """A fault of a download: what the server does, what lies there before, and against whom."""

    id: str
    what: str
    clients: Sequence[str] = ("LAVIS", "torchvision")
    faults: Sequence[Fault] = ()
    before: bytes | None = None
    """What lies at the final name (for those that continue: the first part)."""
    offered: bytes = DATA
    healthy: bytes = DATA
    preflight: bool = True
    """Whether a fault that passes is repeated for LAVIS, which asks once before it downloads."""


DOWNLOADS = [
    Download("T02", "the body always ends early", faults=[Fault(cut_at=HALF)]),
    Download("T03", "the body ends early once", faults=[Fault(times=1, cut_at=HALF)]),
    Download("T04", "no length, ends early", ("LAVIS", "torchvision", "gdown"), [Fault(lengthless=True, cut_at=HALF)]),
    Download("T05", "404", faults=[Fault(status=404)]),
    Download("T06", "403", faults=[Fault(status=403)]),
    Download("T07", "503 twice, with Retry-After", faults=[Fault(times=2, status=503, headers={"Retry-After": "1"})]),
    Download("T08", "429 once, with Retry-After", faults=[Fault(times=1, status=429, headers={"Retry-After": "1"})]),
    Download("T09", "an HTML page", ("LAVIS", "torchvision", "pooch without hash"), [Fault(instead=HTML)]),
    Download("T10", "silence after half", ("LAVIS", "torchvision"), [Fault(stall_at=HALF, stall=60.0)]),
    Download("T11", "two hundred bytes a second", ("LAVIS", "torchvision"), [Fault(rate=200.0)]),
    Download("T12", "more bytes than declared", ("LAVIS", "wget -c", "gdown"), [Fault(extra=b"x" * 1000)]),
    Download("T13", "ranges are ignored", ("curl -C -",), [Fault(ignore_range=True)], before=DATA[:HALF]),
    Download(
        "T15", "another range than asked for", ("wget -c", "curl -C -"), [Fault(range_shift=7)], before=DATA[:HALF]
    ),
    Download("R01", "replaced between two runs", ("wget -c", "curl -C -"), before=OTHER[:HALF]),
    Download("R02", "one bit flipped", ("LAVIS", "wget -c", "pooch without hash"), [Fault(flip_at=HALF)]),
    Download("R03", "the partial file was changed", ("wget -c", "curl -C -"), before=b"tampered" + DATA[8:HALF]),
    Download("R04", "the partial file is too long", ("wget -c",), before=DATA + b"x" * 1000),
    Download("R08", "another file is there", ("LAVIS", "torchvision"), before=OTHER),
    Download("R09", "an empty file is there", ("LAVIS", "torchvision"), before=b""),
    Download("R11", "published anew", ("LAVIS", "torchvision", "gdown"), offered=OTHER, healthy=OTHER),
    Download("R12", "killed after half", ("LAVIS", "torchvision"), [Fault(stall_at=HALF, stall=60.0)]),
    Download("A08", "a zip without its directory", ("LAVIS, then unpacked",), [Fault(instead=DATA[:HALF])]),
    Download("S02", "a row's URL is a file", ("img2dataset",)),
    Download("S03", "a row's URL leads inside", ("img2dataset",)),
]


@dataclass(frozen=True)
class Archive:
    """A fault of an archive, and how to see that it got through: given the folder and the exit code."""

    id: str
    what: str
    name: str
    build: Callable[[Path], bytes]
    harmed: Callable[[Path, int | None], str]
    client: str = "torchvision unpacks"
    given: Mapping[str, Any] = field(default_factory=dict)


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar of these members, as they are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def info(name: str, **attributes: Any) -> tarfile.TarInfo:
    """A member with these attributes."""
    made = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def outside(folder: Path, _: int | None) -> str:
    """Whether a file came to lie outside the folder."""
    found = [path.name for path in folder.parents[2].rglob("evil*") if folder not in path.parents]
    return f"{found[0]} lies outside" if found else ""


def special(folder: Path, _: int | None) -> str:
    """Whether a device, FIFO or setuid file was made."""
    for path in folder.rglob("*"):
        if path.is_fifo() or (path.is_file() and path.stat().st_mode & 0o6000):
            return f"{path.name} was made"
    return ""


def accepted(words: str) -> Callable[[Path, int | None], str]:
    """Whether it ended well, which it must not."""
    return lambda _, code: words if code == 0 else ""


def half_file(folder: Path, code: int | None) -> str:
    """Whether something shorter or longer than the member stands at its name."""
    path = folder / "a.jpg"
    return "half a file at its name" if code != 0 and path.exists() and path.stat().st_size != 5000 else ""


def linked_to(folder: Path, _: int | None) -> str:
    """Whether a link leads to the file outside, or it was written through."""
    secret = folder.parents[2] / "precious"
    if secret.read_bytes() != b"precious":
        return "a file outside was written"
    return "linked to a file outside" if secret.stat().st_nlink > 1 else ""


def lying_zip(_: Path) -> bytes:
    """The directory declares fewer bytes than there are."""
    data = bytearray(zip_bytes({"a.jpg": payload(5000)}, zipfile.ZIP_DEFLATED))
    for mark, at in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        place = data.index(mark) + at
        data[place : place + 4] = (1000).to_bytes(4, "little")
    return bytes(data)


def twice(_: Path) -> bytes:
    return tar_of((info("a.jpg"), payload(5000)), (info("A.jpg"), payload(5000)), (info("a.jpg"), payload(5000, 1)))


def cut_tar(_: Path) -> bytes:
    """Cut at the boundary of the third of six members."""
    files = {f"{n}.{kind}": payload(512, n) for n in range(3) for kind in ("jpg", "txt")}
    return tar_bytes(files)[: 3 * 1024]


def trap(folder: Path) -> bytes:
    """A sample with a pickle that makes a file when it is loaded."""

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (folder.parents[2] / "evil",)

    return tar_bytes({"0.pyd": pickle.dumps(Trap())})


LINK = {"type": tarfile.SYMTYPE, "linkname": "../../.."}
ARCHIVES = [
    Archive("A01", "a member named ../", "x.tar", lambda _: tar_of((info("../../../evil"), b"x")), outside),
    Archive("A02", "an absolute path", "x.tar", lambda f: tar_of((info(f"{f.parents[2]}/evil"), b"x")), outside),
    Archive(
        "A03",
        "a link, then through it",
        "x.tar",
        lambda _: tar_of((info("l", **LINK), b""), (info("l/evil"), b"x")),
        outside,
    ),
    Archive(
        "A04",
        "a hard link to the outside",
        "x.tar",
        lambda f: tar_of((info("h", type=tarfile.LNKTYPE, linkname="../../../precious"), b"")),
        linked_to,
    ),
    Archive("A05", "setuid", "x.tar", lambda _: tar_of((info("s", mode=0o4755), b"x")), special),
    Archive("A05", "a FIFO", "x.tar", lambda _: tar_of((info("p", type=tarfile.FIFOTYPE), b"")), special),
    Archive(
        "A06",
        "a thousand times its size",
        "x.zip",
        lambda _: zip_bytes({"zeros": bytes(200 << 20)}, zipfile.ZIP_DEFLATED),
        accepted("unpacked to 1000 times its size"),
    ),
    Archive("A07", "a zip that lies about its size", "x.zip", lying_zip, half_file),
    Archive(
        "A09", "a tar cut at a boundary", "x.tar", cut_tar, accepted("half of it passed for whole"), given={"files": 6}
    ),
    Archive("A10", "a name twice, and in capitals", "x.tar", twice, accepted("one file over another")),
    Archive(
        "W02",
        "a shard cut at a boundary",
        "x.tar",
        cut_tar,
        accepted("fewer samples, no error"),
        "webdataset",
        {"files": 6},
    ),
    Archive("D07", "a pickle in a shard", "x.tar", trap, outside, "webdataset decodes"),
    Archive("S13", "a shard named pipe:", "x.tar", lambda _: b"", outside, "webdataset"),
]


class Worker:
    """The process in the control's environment."""

    def __init__(self, python: Path) -> None:
        site = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        around = {**os.environ, "CONTROL_SITE": site, "PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1"}
        around |= {"no_proxy": "*", "OMP_NUM_THREADS": "1"}
        command = [str(python), str(Path(__file__).with_name("upstream.py"))]
        self._process = subprocess.Popen(command, env=around, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True)
        self.missing: dict[str, str] = json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def run(self, client: str, limit: float = LIMIT, **given: Any) -> int | None:
        """The exit code; None where it was still running at the limit, and was killed."""
        assert self._process.stdin is not None
        limit = PATIENCE if client.startswith("lavis_ext") else limit
        self._process.stdin.write(json.dumps({"client": client, "given": given, "limit": limit}) + "\n")
        self._process.stdin.flush()
        code: int | None = json.loads(self._line())["code"]
        return code

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)


def leave_partial(path: Path, url: str, case: Download) -> None:
    """What `wget -c` has at the final name, ours has beside it, with a record of which object it is of."""
    assert case.before is not None
    etag = hashlib.md5(OTHER if case.id == "R01" else DATA).hexdigest()
    state = {"format": 1, "url": url, "equivalence": "byte_exact", "etag": f'"{etag}"', "last_modified": None}
    state |= {"size": len(DATA), "boot": None, "done": [[0, min(HALF, len(case.before))]]}
    path.with_name("f.zip.part").write_bytes(case.before)
    path.with_name("f.zip.part.json").write_text(json.dumps(state))


def downloaded(worker: Worker, server: Server, case: Download, client: str, folder: Path) -> str:
    """How a client failed, "" where it did not: wrong bytes with code 0, a hang, or a second run that ends wrong."""
    name = f"/{folder.name}/f.zip"
    url, path = server.put(name, case.offered), folder / "f.zip"
    if case.id == "S02":
        (folder / "secret").write_bytes(DATA)
        url = (folder / "secret").as_uri()
    if case.before is not None and client == "lavis_ext" and case.id not in ("R08", "R09"):
        leave_partial(path, url, case)
    elif case.before is not None:
        path.write_bytes(case.before)
    repeated = 1 if client.startswith("LAVIS") and case.preflight else 0
    server.script(name, *(Fault(**{**vars(f), "times": f.times and f.times + repeated}) for f in case.faults))
    given = {"url": url, "path": str(path), "size": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()}
    code = worker.run(client, **given)
    right = path.exists() and path.read_bytes() == DATA
    if case.id in ("S02", "S03"):
        return "fetched" if code == 0 and right else ""
    if code == 0 and not right:
        return "exit 0 with wrong bytes"
    if code is None and case.id != "R12":
        return f"still running after {LIMIT:.0f} s"
    server.script(name)
    server.put(name, case.healthy)
    again = worker.run(client, PATIENCE, **given)
    right = path.exists() and path.read_bytes() == DATA
    if again == 0 and not right:
        return "the next run takes what was left for the file"
    return "" if again == 0 or case.healthy != DATA else "the next run, of a healthy server, fails too"


def unpacked(worker: Worker, case: Archive, client: str, folder: Path) -> str:
    """What harm an archive did, "" where none."""
    target = folder / "root" / "toy" / "images"
    target.mkdir(parents=True)
    (folder / "precious").write_bytes(b"precious")
    path = target / case.name
    path.write_bytes(case.build(target))
    archive = f"pipe:touch {folder}/evil" if case.id == "S13" else str(path)
    kind = "zip" if case.name.endswith("zip") else "tar"
    given = {"archive": archive, "folder": str(target), "kind": kind, **case.given}
    return case.harmed(target, worker.run(client, **given))


def environment(folder: Path) -> Path:
    """Python of an environment with the published packages; made where it is not there."""
    python = folder / "bin" / "python"
    if python.exists():
        return python
    venv.create(folder, with_pip=True)
    install = [str(python), "-m", "pip", "install", "-q", "--no-deps", "-c", str(ROOT / "constraints.txt"), *PACKAGES]
    subprocess.run(install, check=True)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(site) / "tests_environment.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("-packages"))
    )
    return python


def run(python: Path, folder: Path) -> tuple[set[str], list[str]]:
    """The ids that got through somewhere upstream, and those of which ours did not survive the same injection."""
    worker, failed, ours = Worker(python), set(), []
    for name, why in worker.missing.items():
        print(f"not run: {name}: {why}")
    number = 0
    with Server() as server:
        for case in [*DOWNLOADS, *ARCHIVES]:
            mine = "lavis_ext" if isinstance(case, Download) else "lavis_ext unpacks"
            clients = [*case.clients] if isinstance(case, Download) else [case.client]
            skip_ours = case.id in (
                "S02",
                "S03",
                "S13",
                "D07",
                "W02",
            )  # of other parts of ours, which have their own tests
            for client in [*clients, *([] if skip_ours else [mine])]:
                if shutil.which(client.partition(" ")[0]) is None and client in ("wget -c", "curl -C -"):
                    print(f"not run: {case.id} {client}: it is not installed")
                    continue
                number += 1
                place = folder / str(number)
                place.mkdir()
                if isinstance(case, Download):
                    harm = downloaded(worker, server, case, client, place)
                else:
                    harm = unpacked(worker, case, client, place)
                shutil.rmtree(place)
                print(f"{case.id}  {case.what:32} {client:22} {harm or 'survives'}", flush=True)
                if harm and client == mine:
                    ours.append(case.id)
                elif harm:
                    failed.add(case.id)
    worker.close()
    return failed, ours


def main(words: Sequence[str] | None = None) -> int:
    """0 where at least `WANTED` faults got through upstream, and none through ours."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.control", description=__doc__)
    parser.add_argument("--env", type=Path, help="where the published packages are, or go (default: a new one)")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        failed, ours = run(environment(given.env or Path(folder) / "env"), Path(folder))
    ids = sorted({case.id for case in [*DOWNLOADS, *ARCHIVES]})
    print(f"\n{len(ids)} faults injected into published tools · {len(failed)} got through · {len(ours)} through ours")
    return 0 if len(failed) >= WANTED and not ours else 1


if __name__ == "__main__":
    sys.exit(main())
