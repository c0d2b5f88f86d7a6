"""The fetch engine beside the layers and tools it could stand on: P4 and P5 of `python -m benchmarks`.

    python benchmarks/fetch_layer.py --before CHECKOUT [--runs 5] [--files 600] [--large-mb 512]
        [--only small,latency,large] [--cgroup FOLDER] [--folder FOLDER]

compares ours with ours of another checkout, say of the parent commit. `--cgroup` names a control group with little
memory, which the clients alone enter: what they write does not stay in the page cache. Every client runs in its own
process against a server in another (nginx where installed; our own asyncio server adds the latency).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
Job = dict[str, Any]
Figures = dict[str, float]
Client = Callable[[Job], None]
CHUNK = 1 << 18
TOGETHER = 32
SEGMENT = 32 << 20


# --- servers ---------------------------------------------------------------------------------------------------------


class Loopback(asyncio.Protocol):
    """GET with keep-alive and ranges from memory, after a delay."""

    def __init__(self, folder: Path, delay: float, cache: dict[str, bytes]) -> None:
        self.folder, self.delay, self.cache = folder, delay, cache
        self.pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.pending += data
        while b"\r\n\r\n" in self.pending:
            head, _, self.pending = self.pending.partition(b"\r\n\r\n")
            asyncio.get_running_loop().call_later(self.delay, self.answer, head.decode("latin-1"))

    def answer(self, head: str) -> None:
        name = head.split(" ", 2)[1].removeprefix(HUB).lstrip("/")
        if name not in self.cache:
            self.cache[name] = (self.folder / name).read_bytes()
        data, status = self.cache[name], "200 OK"
        more = f'ETag: "{len(data)}"\r\nAccept-Ranges: bytes\r\nX-Repo-Commit: {REVISION}\r\n'
        body = memoryview(data)
        for line in head.split("\r\n"):
            if line.lower().startswith("range: bytes="):
                start, _, last = line[13:].partition("-")
                body = body[int(start) : int(last) + 1 if last else None]
                status = "206 Partial Content"
                more += f"Content-Range: bytes {start}-{int(start) + len(body) - 1}/{len(data)}\r\n"
        lines = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        if not self.transport.is_closing():
            self.transport.writelines([lines.encode(), body if " HEAD" not in head and head[:4] != "HEAD" else b""])


async def serve(folder: Path, port: int, delay: float) -> None:
    """Serve a folder until killed."""
    cache: dict[str, bytes] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Loopback(folder, delay, cache), "127.0.0.1", port, backlog=512)
    await server.serve_forever()


NGINX = """worker_processes 1; daemon off; pid {run}/pid; error_log {run}/error.log;
events {{ worker_connections 512; }}
http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; client_body_temp_path {run};
proxy_temp_path {run}; fastcgi_temp_path {run}; uwsgi_temp_path {run}; scgi_temp_path {run};
server {{ listen 127.0.0.1:{port}; root {root};
location {hub}/ {{ alias {root}/; add_header X-Repo-Commit {revision}; }} }} }}"""
HUB, REVISION = "/bench/bench/resolve/main", "0123456789abcdef0123456789abcdef01234567"
"""Where huggingface_hub looks for the same files."""


@contextlib.contextmanager
def server(folder: Path, delay: float) -> Iterator[str]:
    """Base URL of a running server: nginx without delay where it is installed, else our own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as run:
        if shutil.which("nginx") and not delay:
            Path(run).chmod(0o755)
            config = Path(run) / "nginx.conf"
            user = "user root;" if os.getuid() == 0 else ""
            config.write_text(user + NGINX.format(run=run, port=port, root=folder, hub=HUB, revision=REVISION))
            command = ["nginx", "-c", str(config), "-e", f"{run}/error.log"]
        else:
            command = [sys.executable, __file__, "--serve", str(folder), str(port), str(delay)]
        process = subprocess.Popen(command)
        try:
            wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def wait_for(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit("the server does not start")


# --- clients: each makes job["out"]/<name> for every job["files"] ----------------------------------------------------


def names(job: Job) -> list[tuple[str, Path]]:
    return [(f"{job['base']}/{name}", Path(job["out"]) / name) for name, _, _ in job["files"]]


def check_hash(job: Job) -> None:
    """What ours does always: the large file's sha256, for those that do not take it themselves."""
    for name, _, sha256 in job["files"]:
        with (Path(job["out"]) / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise SystemExit(f"{name}: wrong bytes")


def ours(job: Job, **options: Any) -> None:
    from lavis_ext.fetch import Policy, Source, Transfer, fetch_all

    transfers = [
        Transfer(Path(job["out"]) / name, (Source(f"{job['base']}/{name}"),), size, sha256)
        for name, size, sha256 in job["files"]
    ]
    fetch_all(transfers, Policy(**{"jobs": TOGETHER, "per_host": TOGETHER, **options}))


def ours_unflushed(job: Job) -> None:
    ours(job, fsync=False)


def ours_sequential(job: Job) -> None:
    ours(job, segments=1)


def in_threads(work: Callable[[tuple[str, Path]], None], job: Job) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(work, names(job)))


def urllib3_threads(job: Job) -> None:
    import urllib3

    manager = urllib3.PoolManager(maxsize=TOGETHER)

    def one(place: tuple[str, Path]) -> None:
        digest = hashlib.sha256()
        with place[1].open("wb") as file:
            response = manager.request("GET", place[0], preload_content=False)
            while data := response.read1(CHUNK):
                file.write(data)
                digest.update(data)
            response.release_conn()

    in_threads(one, job)


def urllib_threads(job: Job) -> None:
    from urllib.request import urlopen

    def one(place: tuple[str, Path]) -> None:
        digest = hashlib.sha256()
        with urlopen(place[0]) as response, place[1].open("wb") as file:
            while data := response.read(CHUNK):
                file.write(data)
                digest.update(data)

    in_threads(one, job)


def gather(one: Callable[[str, Path], Awaitable[None]], job: Job) -> Awaitable[Any]:
    gate = asyncio.Semaphore(TOGETHER)

    async def held(url: str, path: Path) -> None:
        async with gate:
            await one(url, path)

    return asyncio.gather(*(held(url, path) for url, path in names(job)))


def obstore_async(job: Job) -> None:
    import obstore
    from obstore.store import HTTPStore

    store = HTTPStore.from_url(job["base"], client_options={"allow_http": True})

    async def one(url: str, path: Path) -> None:
        digest = hashlib.sha256()
        result = await obstore.get_async(store, urlsplit(url).path.lstrip("/"))
        with path.open("wb") as file:
            async for data in result.stream(CHUNK):
                file.write(data)
                digest.update(data)

    async def main() -> None:
        await gather(one, job)

    asyncio.run(main())


def obstore_ranges(job: Job) -> None:
    import obstore
    from obstore.store import HTTPStore

    store = HTTPStore.from_url(job["base"], client_options={"allow_http": True})
    (name, size, _) = job["files"][0]
    with (Path(job["out"]) / name).open("wb") as file:
        file.truncate(size)
        fd = file.fileno()

        def one(start: int) -> None:
            os.pwrite(fd, obstore.get_range(store, name, start=start, end=min(size, start + SEGMENT)), start)

        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(0, size, SEGMENT)))
    check_hash(job)


def aiohttp_async(job: Job) -> None:
    import aiohttp

    async def main() -> None:
        connector = aiohttp.TCPConnector(limit=TOGETHER)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:

            async def one(url: str, path: Path) -> None:
                digest = hashlib.sha256()
                async with session.get(url) as response:
                    with path.open("wb") as file:
                        async for data in response.content.iter_any():
                            file.write(data)
                            digest.update(data)

            await gather(one, job)

    asyncio.run(main())


def httpx_async(job: Job) -> None:
    import httpx

    async def main() -> None:
        limits = httpx.Limits(max_connections=TOGETHER, max_keepalive_connections=TOGETHER)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:

            async def one(url: str, path: Path) -> None:
                digest = hashlib.sha256()
                async with client.stream("GET", url) as response:
                    with path.open("wb") as file:
                        async for data in response.aiter_raw():
                            file.write(data)
                            digest.update(data)

            await gather(one, job)

    asyncio.run(main())


def curl(job: Job) -> None:
    more = "continue-at = -\n" if job.get("resumed") else ""
    listed = "".join(f'url = "{url}"\noutput = "{path}"\n{more}' for url, path in names(job))
    command = [
        "curl",
        "-sS",
        "--no-progress-meter",
        "--fail",
        "--parallel",
        "--parallel-max",
        str(TOGETHER),
        "--config",
        "-",
    ]
    subprocess.run(command, input=listed, text=True, check=True)
    if len(job["files"]) == 1:
        check_hash(job)


def aria2(job: Job, connections: int = 1) -> None:
    listed = "".join(
        f"{job['base']}/{name}\n  out={name}\n  checksum=sha-256={sha256}\n" for name, _, sha256 in job["files"]
    )
    command = ["aria2c", "-q", "-i", "-", "-d", job["out"], "-j", str(TOGETHER), "--file-allocation=none"]
    more = ["--no-conf", f"-x{connections}", f"-s{connections}", "-k8M", *(["-c"] if job.get("resumed") else [])]
    subprocess.run([*command, *more], input=listed, text=True, check=True)


def aria2_ranges(job: Job) -> None:
    aria2(job, 4)


def hf_hub(job: Job) -> None:
    from huggingface_hub import hf_hub_download

    for name, _, _ in job["files"]:
        hf_hub_download("bench/bench", name, local_dir=job["out"])
    check_hash(job)


def nocaps_script(job: Job) -> None:
    """LAVIS' download_nocaps.py: sixteen processes, a connection a file, three seconds of sleep after each."""
    from multiprocessing import get_context

    with get_context("fork").Pool(16) as pool:
        list(pool.imap(nocaps_file, names(job)))


def nocaps_file(place: tuple[str, Path]) -> None:
    import requests

    place[1].write_bytes(requests.get(place[0], timeout=10).content)
    time.sleep(3)


def img2dataset(job: Job) -> None:
    """img2dataset, bodies kept as they come: the start of its processes and its statistics count, as for a user."""
    import img2dataset

    out = Path(job["out"])
    listed, made = out / "urls.txt", out / "made"
    listed.write_text("".join(f"{url}\n" for url, _ in names(job)))
    img2dataset.download(
        str(listed),
        output_folder=str(made),
        processes_count=os.cpu_count() or 1,
        thread_count=TOGETHER,
        number_sample_per_shard=-(-len(job["files"]) // (os.cpu_count() or 1)),
        disable_all_reencoding=True,
    )
    for path, (_, place) in zip(sorted(made.glob("*/*.jpg")), names(job), strict=True):
        path.rename(place)


HUB_SETTINGS = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


SMALL: dict[str, tuple[Client, str]] = {
    "ours": (ours, ""),
    "ours, not flushed": (ours_unflushed, ""),
    "urllib3, threads": (urllib3_threads, "urllib3"),
    "urllib, threads": (urllib_threads, ""),
    "obstore, async": (obstore_async, "obstore"),
    "aiohttp": (aiohttp_async, "aiohttp"),
    "httpx, async": (httpx_async, "httpx"),
    "curl --parallel": (curl, "$curl"),
    "aria2c": (aria2, "$aria2c"),
    "NoCaps' script, 32 files": (nocaps_script, ""),
    "img2dataset, its start too, 600 files": (img2dataset, ""),
}
MOST = {"NoCaps' script, 32 files": 32, "img2dataset, its start too, 600 files": 600}
"""Files for those of whom more would take minutes: only their rates compare."""
LARGE: dict[str, tuple[Client, str]] = {
    "ours": (ours, ""),
    "ours, one connection": (ours_sequential, ""),
    "ours, not flushed": (ours_unflushed, ""),
    "urllib3, one connection": (urllib3_threads, "urllib3"),
    "obstore, one connection": (obstore_async, "obstore"),
    "obstore, 4 ranges": (obstore_ranges, "obstore"),
    "aiohttp, one connection": (aiohttp_async, "aiohttp"),
    "httpx, one connection": (httpx_async, "httpx"),
    "curl, one connection": (curl, "$curl"),
    "aria2c, one connection": (aria2, "$aria2c"),
    "aria2c, 4 ranges": (aria2_ranges, "$aria2c"),
    "hf_hub": (hf_hub, ""),
}


# --- measuring -------------------------------------------------------------------------------------------------------


def run_client(scene: str, name: str) -> None:
    """In the child: the job comes on stdin, seconds and CPU seconds go to stdout; imports do not count."""
    job: Job = json.load(sys.stdin)
    client = (LARGE if scene == "large" else SMALL)[name][0]
    os.environ.update({**HUB_SETTINGS, "HF_ENDPOINT": job["base"]} if name == "hf_hub" else {})
    modules = {"ours": ("lavis_ext.fetch", "lavis_ext.fetch.http"), "hf_hub": ("huggingface_hub.file_download",)}
    modules |= {"NoCaps' script": ("requests",)}
    first = name.partition(",")[0]
    for module in modules.get(first, (first,) if first in ("urllib3", "obstore", "aiohttp", "httpx") else ()):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    begun, used = time.perf_counter(), cpu()
    client(job)
    print(json.dumps({"wall": time.perf_counter() - begun, "cpu": cpu() - used}), flush=True)
    # obstore has nothing to close: a thread of its runtime that still waits for the interpreter's lock, to let go of
    # the last answer, aborts the process when the interpreter ends (SIGABRT, one run in eight on a busy machine)
    os._exit(0)


def cpu() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


TURN = 300
"""Seconds for one run of a client."""


def measure(
    scene: str,
    name: str,
    job: Job,
    python: str = sys.executable,
    path: str = "",
    before: str = "",
    cgroup: Path | None = None,
) -> Figures:
    """One run of a client in a process of its own, by a Python and a PATH that have it."""
    out = Path(job["out"])
    if not job.get("resumed"):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
    os.sync()
    command, environment = prepared(scene, name, python, path, before)
    if cgroup:
        command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(cgroup), *command]
    told, printed = json.dumps(job), subprocess.PIPE
    done = subprocess.run(command, input=told, text=True, stdout=printed, check=True, env=environment, timeout=TURN)
    for file, size, _ in job["files"]:
        if (out / file).stat().st_size != size:
            raise RuntimeError(f"{name}: {file} is not complete")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def prepared(scene: str, name: str, python: str, path: str, before: str = "") -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of a client's process."""
    sources = os.pathsep.join(filter(None, [before or str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PATH": path or os.environ["PATH"], "PYTHONPATH": sources}
    return [python, __file__, "--client", scene, name], environment


def measure_resumed(name: str, job: Job, python: str, path: str) -> Figures:
    """A client interrupted, as by Ctrl-C, once half of the file is on the disk; then what it needs for the rest.

    `rate` is of the bytes that were missing, the hash of the whole file included.
    """
    out, whole = Path(job["out"]), sum(size for _, size, _ in job["files"])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    command, environment = prepared("large", name, python, path)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment, **quiet) as first:
        assert first.stdin is not None
        first.stdin.write(json.dumps(job))
        first.stdin.close()
        until = time.monotonic() + TURN
        while on_disk(out) < whole / 2 and first.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGINT)
            try:
                first.wait(10)
            finally:
                os.killpg(first.pid, signal.SIGKILL)
    left = whole - on_disk(out)
    if left <= 0:
        raise RuntimeError(f"{name}: nothing was left to resume")
    figures = measure("large", name, {**job, "resumed": True}, python, path)
    return {"rate": left / 1e6 / figures["wall"], **figures}


def on_disk(folder: Path) -> int:
    """Bytes below a folder, holes left out."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_blocks * 512
    return total


def make_files(folder: Path, count: int, size: int) -> list[tuple[str, int, str]]:
    folder.mkdir(parents=True, exist_ok=True)
    chance, made = random.Random(7), []
    for n in range(count):
        length = size if count == 1 else chance.randrange(size // 2, size * 3 // 2)
        block, digest = chance.randbytes(min(length, 1_000_003)), hashlib.sha256()
        with (folder / f"f{n:05}.bin").open("wb") as file:
            for start in range(0, length, len(block)):
                part = block[: length - start]
                file.write(part)
                digest.update(part)
        made.append((f"f{n:05}.bin", length, digest.hexdigest()))
    return made


def compare(scene: str, job: Job, asked: argparse.Namespace) -> None:
    """Ours as it is here beside ours of another checkout, in turns."""
    names = ["ours", "ours, one connection"] if scene == "large" else ["ours"]
    taken: dict[tuple[str, str], list[Figures]] = {(name, who): [] for name in names for who in ("before", "now")}
    load = []
    for _ in range(asked.runs):
        load.append(os.getloadavg()[0])
        for (name, who), found in taken.items():
            before = str(asked.before) if who == "before" else ""
            found.append(measure(scene, name, job, before=before, cgroup=asked.cgroup))
    print(f"\nload {min(load):.1f} to {max(load):.1f}\n\n| {scene} | seconds | CPU s |\n|---|---|---|")
    for (name, who), found in taken.items():
        wall, used = (statistics.median(one[key] for one in found) for key in ("wall", "cpu"))
        print(f"| {who}: {name} | {wall:.3f} | {used:.3f} |", flush=True)


def main() -> None:
    """Be the server or a client, or compare two checkouts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="the checkout to compare with")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--files", type=int, default=600)
    parser.add_argument("--large-mb", type=int, default=512)
    parser.add_argument("--only", default="small,latency,large")
    parser.add_argument("--cgroup", type=Path, help="a control group that the clients run in")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--client", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        asyncio.run(serve(Path(asked.serve[0]), int(asked.serve[1]), float(asked.serve[2])))
    if asked.client:
        return run_client(*asked.client)
    if asked.before is None:
        parser.error("name a checkout with --before; beside other clients it is `python -m benchmarks --only P4,P5`")
    with tempfile.TemporaryDirectory(dir=asked.folder) as work:
        folder = Path(work)
        folder.chmod(0o755)
        for scene, delay, count, size in (
            ("small", 0.0, asked.files, 150_000),
            ("latency", 0.03, asked.files, 150_000),
            ("large", 0.0, 1, asked.large_mb * 1_000_000),
        ):
            if scene in asked.only.split(","):
                files = make_files(folder / scene, count, size)
                with server(folder / scene, delay) as base:
                    compare(scene, {"base": base, "files": files, "out": str(folder / "out")}, asked)
                shutil.rmtree(folder / scene)
    return None


if __name__ == "__main__":
    threading.stack_size(1 << 20)
    main()
