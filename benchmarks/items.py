"""The lines of the table: P1 to P14, their contenders and what each is to reach."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count as count_from
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import far_shards, fetch_layer, packing, prepared_coco, remote_zip
from benchmarks.harness import LIMIT, Contender, Figures, Item, Scene, Target, child
from benchmarks.peers import MissingPeer, peer_python

Contenders = Iterator[Sequence[Contender]]
LOADER, FETCH = "benchmarks/loader.py", "benchmarks/fetch_layer.py"


def process(name: str, words: Sequence[str], peer: str = "", **environment: str) -> Contender:
    """A contender that is a process of ours, in the environment of a peer where it has one."""

    def run() -> Figures:
        return child(words, peer_python(peer) if peer else sys.executable, **environment)

    return Contender(name, run)


def together(script: Callable[[], Mapping[str, Figures]], names: Sequence[str]) -> list[Contender]:
    """Contenders that one script measures in turns: it runs once a round, and not again once it has failed."""
    held: dict[str, Figures] = {}
    failed: list[MissingPeer] = []

    def take(name: str) -> Figures:
        if name not in held and not failed:
            try:
                held.update(script())
            except MissingPeer as error:
                failed.append(error)
        if name not in held:
            raise failed[0]
        return held.pop(name)

    return [Contender(name, partial(take, name)) for name in names]


# --- P1, P2, P3: loading ----------------------------------------------------------------------------------------------

RAW = {
    "ours": "", "ours, from a kept zip": "", "LAVIS": "", "webdataset 0.2": "", "webdataset 1.0": "webdataset-1",
    "HF datasets, folder": "datasets", "HF datasets, arrow": "datasets", "mosaicml-streaming": "mosaicml",
    "litdata": "litdata", "torchdata": "torchdata", "libjpeg-turbo, decoding alone": "",
}  # fmt: skip
SHARDS = {
    "ours": "", "LAVIS' Laion pipeline, webdataset 0.2": "", "webdataset 1.0": "webdataset-1",
    "mosaicml-streaming": "mosaicml", "litdata": "litdata", "megatron-energon": "energon",
}  # fmt: skip
ROWS = {"ours": "", "ours, first conversion": "", "json": "", "orjson": "clients", "HF datasets": "datasets"}


@contextmanager
def loading(scene: Scene, kind: str, peers: Mapping[str, str], count: int) -> Contenders:
    """P1 and P2: one world of pictures in every form that a contender reads."""
    root = scene.folder / kind
    words = [LOADER, "write", kind, str(root), str(200 if scene.quick else count)]
    child([*words, *([str(scene.images)] if scene.images else [])])
    told = ["measure", kind, str(root), str(scene.workers)]
    yield [process(name, [LOADER, *told, name], peer) for name, peer in peers.items()]


@contextmanager
def rows(scene: Scene, count: int) -> Contenders:
    """P3: annotations of Karpathy's shape, ready to index; four processes read all of them."""
    path = scene.folder / f"rows-{count}" / "rows.json"
    count = 5000 if scene.quick else count
    child(["benchmarks/rows.py", "write", str(path), str(count)])
    measured = ["benchmarks/rows.py", "measure", str(path), "4"]
    yield [process(name, [*measured, name], peer) for name, peer in ROWS.items()]


# --- P4, P5: fetching -------------------------------------------------------------------------------------------------


@contextmanager
def fetching(
    scene: Scene, kind: str, count: int, size: int, delay: float, clients: Sequence[str], resumed: bool = False
) -> Contenders:
    """P4 and P5: files from a server on loopback in another process; `resumed` once half of one is there."""
    folder = scene.folder / f"{kind}-{delay}"
    if scene.quick:
        count, size = (count // 40, size) if count > 1 else (1, size // 40)
    files = fetch_layer.make_files(folder, count, size)
    # what a turn has made stays until all is measured: for minutes after many files went, ext4 is slow to make others
    turns, kept = count_from(0), kind == "small"
    made = scene.folder / f"made-{kind}-{delay}"
    made.mkdir()
    with fetch_layer.server(folder, delay) as base:

        def run(name: str) -> Figures:
            out = made / (str(next(turns)) if kept else "out")
            job = {"base": base, "files": files[: fetch_layer.MOST.get(name)], "out": str(out)}
            need = (fetch_layer.LARGE if kind == "large" else fetch_layer.SMALL)[name][1]
            python = peer_python(PEERS[need]) if need in PEERS else sys.executable
            path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}" if need == "$aria2c" else os.environ["PATH"]
            if need.startswith("$") and shutil.which(need[1:], path=path) is None:
                raise MissingPeer(f"{need[1:]} is not installed")
            if resumed:
                return fetch_layer.measure_resumed(name, job, python, path)
            found = fetch_layer.measure(kind, name, job, python, path)
            amount = files[0][1] / 1e6 if kind == "large" else len(job["files"])
            return {"rate": amount / found["wall"], **found}

        yield [Contender(name, partial(run, name)) for name in clients]
    if not kept:
        shutil.rmtree(folder)
        shutil.rmtree(made)


PEERS = {"obstore": "clients", "aiohttp": "clients", "httpx": "clients", "$aria2c": "aria2"}
SMALL = ("ours", "obstore, async", "urllib3, threads", "curl --parallel", "aria2c", "aiohttp")
SLOW = tuple(fetch_layer.MOST)
LARGE = (
    "ours", "obstore, one connection", "urllib3, one connection", "curl, one connection", "aria2c, 4 ranges", "hf_hub",
)  # fmt: skip
RESUMED = ("ours", "curl, one connection", "aria2c, 4 ranges", "hf_hub")


# --- P7, P9, P11: scripts that take turns themselves ------------------------------------------------------------------


@contextmanager
def features(scene: Scene) -> Contenders:
    """P7: rows of regions at random, and the import."""
    size = ["--images", "200", "--reads", "300"] if scene.quick else ["--images", "2000"]
    names = {"Oscar's TSV and lineidx": "Oscar's TSV", "volta's pickled LMDB": "volta's LMDB", "h5py": "h5py"}
    names |= {"native, float32": "ours, float32", "native, float16": "ours"}

    def script() -> Mapping[str, Figures]:
        found: Any = child(["benchmarks/features.py", "--json", "--rounds", "1", *size])
        made = {names[name]: {"rate": rate} for name, rate in found["rates"].items()}
        once = {name: {"rate": 1 / found["imports"][key]} for name, key in IMPORTS.items()}
        return {**made, **once}

    yield together(script, [*names.values(), *IMPORTS])


IMPORTS = {"ours, import to float16": "float16", "base64 decoding alone": "decode"}


@contextmanager
def overhead(scene: Scene, given: Sequence[str] = (), processes: int = 1) -> Contenders:
    """P9: steps of the runner beside a bare loop over the same model, and beside accelerate's."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    words = [*launch, "benchmarks/runner_overhead.py", "--json", "--rounds", "3", "--device", "cpu", *given]
    words += ["--rounds", "1", "--steps", "2", "--batch", "2"] if scene.quick else []

    def script() -> Mapping[str, Figures]:
        found: Any = child(words)
        return {{"runner": "ours"}.get(name, name): {"wall": median(steps)} for name, steps in found.items()}

    yield together(script, ["ours", "bare loop", "accelerate's loop"])


@contextmanager
def distilling(scene: Scene) -> Contenders:
    """P11: steps with a teacher beside steps without."""
    words = ["benchmarks/distill.py", "--json", "--rounds", "1", "--steps", "1" if scene.quick else "3"]
    words += ["--hidden", "64", "--layers", "2", "1"] if scene.quick else []

    def script() -> Mapping[str, Figures]:
        found: Any = child(words)
        return {name: {"wall": 1 / rates[0]} for name, rates in found.items()}

    yield together(script, ["fine-tuning", "vanilla KD", "MKD, cached teacher", "MKD, frozen teacher", "MKD + Reptile"])


# --- P8, P10, P12: commands -------------------------------------------------------------------------------------------


def command(
    name: str,
    words: Sequence[str],
    environment: Mapping[str, str],
    program: str = sys.executable,
    expected: Sequence[int] = (0,),
) -> Contender:
    """A process as a user starts it: seconds, those of the processor, resident memory."""

    def run() -> Figures:
        place = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if place is None:
            raise MissingPeer(f"{program} is not installed")
        wall, cpu, memory = prepared_coco.measure(words, {**os.environ, **environment}, place, expected)
        return {"wall": wall, "cpu": cpu, "memory": memory}

    return Contender(name, run)


@contextmanager
def light(scene: Scene) -> Contenders:
    """P8: what is asked often, on an empty disk."""
    own = {"LAVIS_EXT_CACHE_ROOT": str(scene.folder / "empty"), "HF_HUB_OFFLINE": "1"}
    run_file = str(prepared_coco.ROOT / "configs/projects/blip2/train/caption_coco_ft.yaml")
    asked = {"list": ["list"], "status": ["status"], "dry run": ["prepare", "coco", "--dry-run"]}
    asked["check"] = ["check", run_file]
    yield [
        # a dry run ends with 4 or 6 where the network or the room for it is not there
        *(command(f"ours, {n}", ["-m", "lavis_ext", *w], own, expected=(0, 4, 6)) for n, w in asked.items()),
        command("hf", ["--help"], own, "hf"),
        command("import lavis", ["-c", "import lavis"], own) if has("lavis") else missing("import lavis", "lavis"),
    ]


def has(module: str) -> bool:
    """Whether a module is installed beside us."""
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True).returncode == 0


def missing(name: str, what: str) -> Contender:
    """A contender that is not here."""

    def run() -> Figures:
        raise MissingPeer(f"{what} is not installed")

    return Contender(name, run)


@contextmanager
def first_step(scene: Scene) -> Contenders:
    """P9: from the command to the first line of the log, COCO at its real size; beside the imports alone."""
    base = scene.folder / "coco"
    environment = {**os.environ, **prepared_coco.prepared(base, pictures(scene)), "HF_HUB_OFFLINE": "1"}
    folder = base / "run"

    def ours() -> Figures:
        shutil.rmtree(folder, ignore_errors=True)
        given = [f"run.output_dir={folder}", "run.log_freq=1", "run.device=cpu", "run.report=false"]
        words = [sys.executable, "-m", "lavis_ext", "train", "--cfg-path", str(TINY), "--options", *given]
        begun, quiet = time.perf_counter(), subprocess.DEVNULL
        with subprocess.Popen(words, env=environment, stdout=quiet, stderr=subprocess.PIPE, text=True) as process:
            try:
                while not stepped(folder):
                    if process.poll() is not None or time.perf_counter() - begun > LIMIT:
                        said = process.communicate(timeout=10)[1].strip().splitlines() if process.returncode else []
                        raise MissingPeer((said or ["no step was logged"])[-1][:300])
                    time.sleep(0.005)
                return {"wall": time.perf_counter() - begun}
            finally:
                process.kill()

    yield [
        Contender("ours", ours),
        command("imports alone", ["-c", "import torch, transformers; transformers.Blip2Config"], environment),
    ]


TINY = prepared_coco.ROOT / "configs/projects/demo/train/caption.yaml"


def stepped(folder: Path) -> bool:
    """Whether a run below a folder has logged a step of training."""
    logs = [path.read_text().splitlines() for path in folder.rglob("log.jsonl")]
    return any("loss" in json.loads(line) for lines in logs for line in lines if line.endswith("}"))


def pictures(scene: Scene) -> int:
    """How many COCO has here."""
    return 300 if scene.quick else prepared_coco.PICTURES


@contextmanager
def again(scene: Scene) -> Contenders:
    """P10: what is finished is asked for again, COCO at its real size."""
    base = scene.folder / "coco"
    environment = prepared_coco.prepared(base, pictures(scene))
    named = prepared_coco.COMMANDS.items()
    yield [command(f"ours, {name}", words, environment) for name, words in named]


@contextmanager
def whole(scene: Scene) -> Contenders:
    """P12: COCO at its real size from its archives, and checked again; and the same at a tenth and a hundredth."""
    base, count = scene.folder / "coco", pictures(scene)
    environment = prepared_coco.prepared(base, count)
    zips = [str(path) for path in sorted((base / "mirror").rglob("*.zip"))]
    unpacked = str(base / "unpacked")
    unzip = FIRST.format(unpacked) + " && ".join(f"unzip -q {one} -d {unpacked}" for one in zips)
    hashed = f"find {base / 'data'} -type f -print0 | xargs -0 sha256sum > /dev/null"
    found = [
        *ours_of(base, environment),
        command("unzip", ["-c", unzip], environment, "sh") if shutil.which("unzip") else missing("unzip", "unzip"),
        command("sha256sum", ["-c", hashed], environment, "sh"),
    ]
    for size in dict.fromkeys(max(16, count // part) for part in (10, 100)):
        part = scene.folder / f"coco-{size}"
        found += ours_of(part, prepared_coco.prepared(part, size), f" of {size:,}")
    yield found
    shutil.rmtree(base / "again")
    shutil.rmtree(unpacked)


FIRST = "rm -rf {0}; mkdir -p {0}; "


def ours_of(base: Path, environment: Mapping[str, str], size: str = "") -> list[Contender]:
    """What is asked of one prepared COCO."""
    verify = ["-m", "lavis_ext", "verify", "coco_caption"]
    prepare = f"{FIRST.format(base / 'again')} exec {sys.executable} -m lavis_ext prepare coco_caption --quiet"
    return [
        command(
            f"ours, prepare{size}", ["-c", prepare], {**environment, "LAVIS_EXT_CACHE_ROOT": str(base / "again")}, "sh"
        ),
        command(f"ours, verify{size}", verify, environment),
        command(f"ours, verify --deep{size}", [*verify, "--deep"], environment),
        command(f"ours, load_dataset{size}", prepared_coco.COMMANDS["load_dataset"], environment),
    ]


def ready(name: str, seconds: float) -> Target:
    """A command's bound."""
    return Target(f"`{name}` < {seconds:g} s", "wall", most=seconds, ours=f"ours, {name}")


LOADERS = ("webdataset-1", "datasets", "mosaicml", "litdata", "torchdata")
HUNDREDTH = f"{prepared_coco.PICTURES // 100:,}"
ITEMS = (
    Item("P1", "raw 640×480 JPEG and caption → batches", partial(loading, kind="raw", peers=RAW, count=1024), (
        Target("≥ 3.2 × LAVIS", "rate", "LAVIS", least=3.2),
        Target("≥ 3.2 × the best peer", "rate", "best", least=3.2),
        Target("≥ 0.75 of full decoding", "rate", "libjpeg-turbo, decoding alone", least=0.75)), peers=LOADERS),
    Item("P2", "256-pixel shards → batches", partial(loading, kind="shards", peers=SHARDS, count=3072), (
        Target("≥ 4.5 × LAVIS", "rate", "LAVIS' Laion pipeline, webdataset 0.2", least=4.5),
        Target("≥ 3 × the best peer", "rate", "best", least=3),
        Target("first batch ≤ 0.4 s", "first", most=0.4)), peers=(*LOADERS, "energon")),
    Item("P3", "566,747 annotations", partial(rows, count=566_747), (
        Target("ready ≤ 5 ms", "wall", most=0.005),
        Target("first conversion ≤ 1.0 s", "wall", most=1.0, ours="ours, first conversion"),
        Target("first conversion ≤ 200 MB", "memory", most=200, ours="ours, first conversion"),
        Target("memory of 4 processes beside json's", "memory", "json", most=0.25)), peers=("clients", "datasets")),
    Item("P3b", "5,000,000 annotations", partial(rows, count=5_000_000), (
        Target("ready ≤ 50 ms", "wall", most=0.05),
        Target("first conversion ≤ 200 MB", "memory", most=200, ours="ours, first conversion")),
        rounds=1, peers=("clients", "datasets")),
    Item("P4", "2,000 files of 100 kB, 30 ms away",
        partial(fetching, kind="small", count=2000, size=100_000, delay=0.03, clients=SMALL + SLOW), (
        Target("≥ 0.95 of bare obstore", "rate", "obstore, async", least=0.95),
        Target("≥ 2.5 × aria2c", "rate", "aria2c", least=2.5)), peers=("clients", "aria2")),
    Item("P4b", "2,000 files of 100 kB, without latency",
        partial(fetching, kind="small", count=2000, size=100_000, delay=0.0, clients=SMALL), (
        Target("of bare obstore", "rate", "obstore, async", least=0.95),
        Target("of aria2c", "rate", "aria2c", least=2.5)), peers=("clients", "aria2")),
    Item("P5", "one file of 2 GB, hashed: MB",
        partial(fetching, kind="large", count=1, size=2_000_000_000, delay=0.0, clients=LARGE), (
        Target("≥ 1.0 × the best", "rate", "best", least=1.0),), rounds=2, peers=("clients", "aria2")),
    Item("P5b", "the same file resumed at half: MB of the rest",
        partial(fetching, kind="large", count=1, size=2_000_000_000, delay=0.0, clients=RESUMED, resumed=True), (
        Target("≥ 1.0 × the best", "rate", "best", least=1.0),), rounds=2, peers=("aria2",)),
    Item("P6", "100 samples of a zip of 13 GB, 30 ms away at 200 MB/s", remote_zip.samples, (
        Target("≤ 1.1 × the members' bytes", "bytes", most=1.1),
        Target("≤ 1.1 × those bytes and the zip's directory", "all", most=1.1))),
    Item("P7", "region features at random, and their import", features, (
        Target("≥ 20 × Oscar's TSV", "rate", "Oscar's TSV", least=20),
        Target("≥ 10 × volta's LMDB", "rate", "volta's LMDB", least=10),
        Target("import ≥ 0.8 of decoding base64", "rate", "base64 decoding alone", least=0.8,
            ours="ours, import to float16"))),
    Item("P8", "commands that are asked often", light, (
        ready("list", 0.3), ready("status", 0.3), ready("dry run", 0.3), ready("check", 1.5)), rounds=5),
    Item("P9", "the runner over a bare loop, tiny model", overhead, (
        Target("≤ 1.02 × a bare loop", "wall", "bare loop", most=1.02),)),
    Item("P9b", "from the command to the first step, 123,287 pictures", first_step, (
        Target("≤ 3 s beyond imports of torch and transformers", "wall", "imports alone", most=3, beyond=True),)),
    Item("P9c", "the runner over a bare loop, 60 M parameters",
        partial(overhead, given=("--large", "--batch", "4", "--rounds", "1", "--steps", "3")), (
        Target("≤ 1.02 × a bare loop", "wall", "bare loop", most=1.02),)),
    Item("P9d", "the runner over a bare loop, tiny model, two processes",
        partial(overhead, given=("--steps", "8"), processes=2), (
        Target("≤ 1.02 × a bare loop", "wall", "bare loop", most=1.02),)),
    Item("P10", "what is finished asked for again, 123,287 pictures", again, (
        ready("prepare again", 0.5), ready("status", 0.5), ready("list", 0.5),
        Target("`prepare again` < 80 MB", "memory", most=80, ours="ours, prepare again")), rounds=5),
    Item("P11", "distillation beside fine-tuning, a step", distilling, (
        Target("MKD, cached ≤ 2.0", "wall", "fine-tuning", most=2.0, ours="MKD, cached teacher"),
        Target("MKD + Reptile ≤ 4.5", "wall", "fine-tuning", most=4.5, ours="MKD + Reptile"))),
    Item("P12", "123,287 pictures of 0.7 kB prepared and verified", whole, (
        Target("prepare ≤ 1.3 × unzip", "wall", "unzip", most=1.3, ours="ours, prepare"),
        Target("verify ≤ 1.3 × sha256sum", "wall", "sha256sum", most=1.3, ours="ours, verify"),
        Target("verify --deep ≤ 1.3 × sha256sum", "wall", "sha256sum", most=1.3, ours="ours, verify --deep"),
        Target("start ≤ 1.3 × that of a hundredth", "wall", f"ours, load_dataset of {HUNDREDTH}", most=1.3,
            ours="ours, load_dataset"),
        Target("memory of prepare ≤ 1.3 × that of a hundredth", "memory", f"ours, prepare of {HUNDREDTH}", most=1.3,
            ours="ours, prepare")),
        rounds=1),
    Item("P13", "shards 30 ms away at 200 MB/s → pictures", partial(far_shards.far, shards=8, samples=500,
        names=("ours", "ours, the disk", "webdataset, curl", "mosaicml-streaming")), (
        Target("≥ 0.9 of the disk", "rate", "ours, the disk", least=0.9),
        Target("≥ 1.0 × the best peer", "rate", "best", least=1.0))),
    Item("P13b", "ten times as many shards", partial(far_shards.far, shards=40, samples=100, more=10,
        names=("ours", "ours, ten times as many")), (
        Target("≤ 1.05 × the memory", "memory", "ours", most=1.05, ours="ours, ten times as many"),)),
    Item("P14", "a data set packed into shards, 6,000 samples", partial(packing.packing, samples=6000), (
        Target("≥ 0.8 × GNU tar alone", "rate", "GNU tar alone", least=0.8),
        Target("≥ 1.0 × GNU tar and sha256sum", "rate", "GNU tar and sha256sum", least=1.0))),
)  # fmt: skip
"""Everything that is to be measured."""
