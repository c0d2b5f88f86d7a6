"""Published downloaders and unpackers, as they are: runs in the environment that `control` makes, one fork a job.

LAVIS' and torchvision's helpers are imported from their own files of the registry's packages. The `__init__` of both
is left out: torchvision's wants an extension that a CPU torch does not load, LAVIS' imports every model.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

SITE = Path(os.environ.get("CONTROL_SITE", ""))


def without_init(*names: str) -> None:
    """Make packages whose modules can be imported, and whose `__init__` is not run."""
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = [str(SITE / name.replace(".", "/"))]
        sys.modules[name] = module


def lavis_download(url: str, path: str, **_: Any) -> None:
    from lavis.common.utils import download_url

    download_url(url, str(Path(path).parent), Path(path).name)


def lavis_archive(url: str, path: str, **_: Any) -> None:
    from lavis.common.utils import download_and_extract_archive

    download_and_extract_archive(url, str(Path(path).parent), filename=Path(path).name)


def torchvision_download(url: str, path: str, **_: Any) -> None:
    from torchvision.datasets.utils import download_url

    download_url(url, str(Path(path).parent), Path(path).name)


def torchvision_unpack(archive: str, folder: str, **_: Any) -> None:
    from torchvision.datasets.utils import extract_archive

    extract_archive(archive, folder)


def gdown_download(url: str, path: str, **_: Any) -> None:
    import gdown

    if gdown.download(url, path, quiet=True) is None:
        raise SystemExit(1)


def pooch_download(url: str, path: str, **_: Any) -> None:
    import pooch

    pooch.retrieve(url, known_hash=None, path=str(Path(path).parent), fname=Path(path).name)


def wget(url: str, path: str, **_: Any) -> None:
    command = ["wget", "-q", "-c", "--no-proxy", "--tries=1", "-O", path, url]
    raise SystemExit(subprocess.run(command, check=False, capture_output=True).returncode)


def curl(url: str, path: str, **_: Any) -> None:
    command = ["curl", "-sS", "-C", "-", "--noproxy", "*", "-o", path, url]
    raise SystemExit(subprocess.run(command, check=False, capture_output=True).returncode)


def img2dataset_row(url: str, path: str, **_: Any) -> None:
    from img2dataset.downloader import download_image

    _, stream, error = download_image((0, url), 2, None, [])
    if stream is None:
        raise SystemExit(str(error))
    Path(path).write_bytes(stream.read())


def webdataset_count(archive: str, folder: str, **_: Any) -> None:
    import webdataset

    count = sum(1 for _ in webdataset.WebDataset(archive, shardshuffle=False))
    (Path(folder) / "count").write_text(str(count))


def webdataset_decode(archive: str, **_: Any) -> None:
    import webdataset

    for _ in webdataset.WebDataset(archive, shardshuffle=False).decode("pilrgb", handler=webdataset.warn_and_continue):
        pass


def ours_download(url: str, path: str, size: int, sha256: str, **_: Any) -> None:
    from lavis_ext.fetch import Source, Transfer, fetch
    from tests.support.fetching import IMPATIENT

    fetch(Transfer(Path(path), (Source(url),), size, sha256), IMPATIENT)


def ours_unpack(archive: str, folder: str, kind: str = "zip", files: int | None = None, **_: Any) -> None:
    from lavis_ext.common.config.cards import Artifact
    from lavis_ext.fetch import Silent
    from lavis_ext.prepare.extract import list_archive, unpack

    path = Path(archive)
    artifact = Artifact(
        url=f"https://x.org/{path.name}",
        storage="toy/images",
        name="toy",
        unpack=kind,
        unpacked_files=files,  # type: ignore[arg-type]
    )
    table = list_archive(path, artifact)
    if files is not None and len(table.members) != files:
        raise SystemExit("another number of files than declared, as `prepare` says too")
    unpack(path, artifact, Path(folder).parents[1], table, Silent())


CLIENTS: dict[str, Callable[..., None]] = {
    "LAVIS": lavis_download,
    "LAVIS, then unpacked": lavis_archive,
    "torchvision": torchvision_download,
    "torchvision unpacks": torchvision_unpack,
    "gdown": gdown_download,
    "pooch without hash": pooch_download,
    "wget -c": wget,
    "curl -C -": curl,
    "img2dataset": img2dataset_row,
    "webdataset": webdataset_count,
    "webdataset decodes": webdataset_decode,
    "lavis_ext": ours_download,
    "lavis_ext unpacks": ours_unpack,
}


MODULES = ("lavis.common.utils", "torchvision.datasets.utils", "gdown", "pooch", "img2dataset.downloader", "webdataset")


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One job in a fork; `code` is None where it was still running at `limit`, and was killed with all its children."""
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        silent = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(silent, number)
        code = 1
        with contextlib.suppress(BaseException):
            try:
                CLIENTS[job["client"]](**job["given"])
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
        os._exit(code)
    while time.monotonic() - begun < job["limit"]:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - begun}
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return {"code": None, "seconds": time.monotonic() - begun}


def main() -> None:
    """Jobs as lines of JSON on standard input, answers on standard output, after a line of what cannot be imported."""
    without_init("lavis", "torchvision", "torchvision.datasets")
    missing = {}
    for name in (
        "lavis.common.utils",
        "torchvision.datasets.utils",
        "gdown",
        "pooch",
        "img2dataset.downloader",
        "webdataset",
    ):
        try:
            __import__(name)
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(missing), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
