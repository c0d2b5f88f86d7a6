"""Random faults over preparing the drawn world and over a training: `python -m tests.faults.soak --minutes 60`.

Each round disturbs some runs of a command (faults of the server, kills, stops and signals, a disk that fills, a second
process), then lets one end in peace: its files must be those of an undisturbed run byte for byte, its weights and log
the same. A round prints its seed; `--seed` repeats it as the first, and draws those of the following ones from it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from lavis_ext.demo.world import World
from tests.support.disks import SmallDisk, small_disk
from tests.support.killing import checkpoints, require_same_end
from tests.support.server import Fault, Server
from tests.support.toyfamily import tree
from tests.world.export import export_world, place_by_hand

ROOT = Path(__file__).parents[2]
FAMILIES = ["coco", "vqav2", "okvqa", "gqa", "vg", "nocaps", "minigpt4", "nlvr", "snli_ve", "sbu_caption"]
WORLD = World(seed=7, train=16, val=4, test=4, hidden=4)
DOCUMENTED = {0, 4, 5, 6, 7, 8, 9, 75, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
"""How a disturbed command may end; 1 would be a defect of ours, 3 or 10 a lie about the settings or the content.

By the signal itself only while Python starts or ends; a shell calls that 130 and 143 too.
"""
DISK = 256 << 20


class Lost(Exception):
    """The end of a disturbed run is not that of an undisturbed one."""


def random_fault(chance: random.Random, size: int) -> Fault:
    """Something that a server does wrong, once or as long as it is left so."""
    at, times = chance.randrange(max(1, size)), chance.choice([1, 1, 2, None])
    return chance.choice(
        [
            Fault(times, status=chance.choice([403, 404, 408, 429, 500, 502, 503]), headers={"Retry-After": "0"}),
            Fault(times, cut_at=at),
            Fault(times, cut_after=chance.randrange(1, 1 << 16), ignore_range=chance.random() < 0.5),
            Fault(times, lengthless=True, cut_at=at),
            Fault(times, stall_at=at or 1, stall=chance.uniform(0.1, 20)),
            Fault(times, flip_at=at) if size else Fault(times, status=500),
            Fault(times, instead=b"<!DOCTYPE html><html>no</html>"),
            Fault(times, extra=b"x" * chance.randrange(1, 5000)),
            Fault(times, rate=chance.uniform(2000, 200_000)),
            Fault(times, range_shift=7, only_range=True),
            Fault(times, redirect="http://127.0.0.1:1/gone"),
            Fault(times, chunked=True, latency=chance.uniform(0, 1)),
        ]
    )


class Soak:
    """The world, its undisturbed end, and what was done to it since."""

    def __init__(self, base: Path, server: Server, disk: SmallDisk | None) -> None:
        self.base, self.server, self.disk = base, server, disk
        self.done: Counter[str] = Counter()
        self.files = {
            "/" + quote(path.relative_to(base / "mirror").as_posix()): path.stat().st_size
            for path in sorted((base / "mirror").rglob("*"))
            if path.is_file() and path.name != "manifest.json"  # of which half is its author's mistake, code 3
        }
        self.wanted: dict[str, dict[str, bytes]] = {}

    # Preparing

    def prepare(self, root: Path, families: Sequence[str]) -> subprocess.Popen[bytes]:
        """`lavis-ext prepare FAMILIES` into a root."""
        plain = {key: value for key, value in os.environ.items() if not key.startswith("LAVIS_EXT")}
        own = {"LAVIS_EXT_CACHE_ROOT": str(root), "LAVIS_EXT_MIRROR": self.server.base, "PYTHONPATH": str(ROOT)}
        log = (self.base / "prepare.log").open("ab")
        command = [sys.executable, "-m", "lavis_ext", "prepare", *families, "--jobs", "4"]
        with log:
            return subprocess.Popen(command, env={**plain, **own}, stdout=log, stderr=log, start_new_session=True)

    def undisturbed(self) -> None:
        """What each family's folder holds where nothing goes wrong."""
        place_by_hand(WORLD, self.base / "whole", FAMILIES)
        if self.prepare(self.base / "whole", FAMILIES).wait(300):
            raise Lost(f"an undisturbed run fails: {self.base / 'prepare.log'}")
        self.wanted = contents(self.base / "whole")

    def disturb(self, chance: random.Random, root: Path, families: Sequence[str]) -> None:
        """One run of the command under random faults; raises Lost where it ends as no run may."""
        for path in chance.sample(sorted(self.files), chance.randrange(1, 6)):
            self.server.script(path, random_fault(chance, self.files[path]))
            self.done["server faults"] += 1
        runs = [self.prepare(root, families)]
        if chance.random() < 0.2:
            self.done["second processes"] += 1
            runs.append(self.prepare(root, families))
        until = time.monotonic() + chance.uniform(0.5, 8.0)
        full = None
        if self.disk is not None and chance.random() < 0.3:
            self.done["full disks"] += 1
            full = threading.Timer(chance.uniform(0.3, 2.0), self.disk.fill, [chance.choice([0, 4096, 100_000])])
            full.start()
        while time.monotonic() < until and any(run.poll() is None for run in runs):
            if chance.random() < 0.02:
                self.done["stops"] += 1
                stop_and_continue(chance.choice(runs), chance.uniform(0.05, 0.5))
            time.sleep(0.05)
        told: dict[int, int] = {}
        for run in runs:
            if run.poll() is None:
                told[run.pid] = number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
                self.done["kills" if number == signal.SIGKILL else "signals"] += 1
                send(run, number)
        for run in runs:
            with suppress(subprocess.TimeoutExpired):
                run.wait(20)
            if run.poll() is None and run.pid in told:  # Python drops what a destructor raises: once more
                send(run, told[run.pid])
            try:
                run.wait(60)
            except subprocess.TimeoutExpired:
                send(run, signal.SIGKILL)
                raise Lost(f"{families}: still running a minute after it was told to end") from None
        self.server.faults.clear()
        if full is not None and self.disk is not None:
            full.join()
            self.disk.relieve()
        if wrong := {run.returncode for run in runs} - DOCUMENTED:
            raise Lost(f"{families}: ended with {wrong}: {self.base / 'prepare.log'}")

    def prepare_round(self, chance: random.Random) -> None:
        """Some families, disturbed a few times, then in peace; raises Lost where the end differs."""
        families = chance.sample(FAMILIES, chance.randrange(1, 4))
        root = (self.disk.path if self.disk else self.base) / "round"
        place_by_hand(WORLD, root, families)
        for _ in range(chance.randrange(1, 6)):
            self.disturb(chance, root, families)
        run = self.prepare(root, families)
        if run.wait(300):
            raise Lost(f"{families}: in peace it ends with {run.returncode}: {self.base / 'prepare.log'}")
        found = contents(root)
        for folder, files in found.items():
            for name, data in files.items():
                if self.wanted.get(folder, {}).get(name) != data:
                    raise Lost(f"{families}: {folder}/{name} is not the file of an undisturbed run")
            if missing := set(self.wanted[folder]) - set(files) if folder in owned(families) else set():
                raise Lost(f"{families}: {folder} lacks {sorted(missing)[:5]}")
        shutil.rmtree(root)
        self.done["preparations"] += 1

    # Training

    def train(self, job: str) -> subprocess.Popen[bytes]:
        """A short training of the tiny BLIP-2 that saves every second step."""
        own = {"LAVIS_EXT_CACHE_ROOT": str(self.base / "whole"), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        options = ["run.max_epoch=1", "run.batch_size_train=8", "run.save_steps=2", "run.valid_splits=[]"]
        options += ["run.test_splits=[]", "run.report=false", f"run.output_dir={self.base}/runs", f"run.job_id={job}"]
        words = ["train", "--cfg-path", str(ROOT / "configs/projects/demo/train/caption.yaml"), "--options", *options]
        log = (self.base / "train.log").open("ab")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", "lavis_ext", *words], env={**os.environ, **own}, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def train_round(self, chance: random.Random) -> None:
        """A training that is killed or stopped at random moments, and ends as one that is left alone."""
        runs = self.base / "runs"
        if not checkpoints(runs / "whole") and self.train("whole").wait(300):
            raise Lost(f"an undisturbed training fails: {self.base / 'train.log'}")
        for _ in range(chance.randrange(1, 4)):
            run = self.train("cut")
            begun, wait = time.monotonic(), chance.uniform(2.0, 12.0)
            while run.poll() is None and time.monotonic() - begun < wait:
                time.sleep(0.05)
            if run.poll() is None:
                number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
                self.done["kills of a training" if number == signal.SIGKILL else "signals to a training"] += 1
                send(run, number)
            if run.wait(120) not in DOCUMENTED:
                raise Lost(f"a training ended with {run.returncode}: {self.base / 'train.log'}")
        if code := self.train("cut").wait(300):
            raise Lost(f"a training ends with {code} in peace: {self.base / 'train.log'}")
        try:
            require_same_end(runs / "whole", runs / "cut")
        except AssertionError as error:
            raise Lost(f"the end of the training differs: {error}") from error
        shutil.rmtree(runs / "cut")
        self.done["trainings"] += 1


def owned(families: Sequence[str]) -> set[str]:
    """Folders of the root that belong to these families alone, and must be whole."""
    places = {"nocaps": "nocaps", "gqa": "gqa", "vg": "vg", "minigpt4": "cc_sbu_align", "sbu_caption": "sbu_captions"}
    return {places[family] for family in families if family in places}


def contents(root: Path) -> dict[str, dict[str, bytes]]:
    """Top folder → its files, without bookkeeping and what was set aside."""
    found: dict[str, dict[str, bytes]] = {}
    for name, data in tree(root).items():
        top, _, rest = name.partition("/")
        if ".bad-" not in name:
            found.setdefault(top, {})[rest] = data
    return found


def send(run: subprocess.Popen[bytes], number: int) -> None:
    """A signal to the command; a kill also takes the processes that it started, as a machine that goes down does."""
    try:
        (os.killpg if number == signal.SIGKILL else os.kill)(run.pid, number)
    except ProcessLookupError:
        return


def stop_and_continue(run: subprocess.Popen[bytes], seconds: float) -> None:
    """SIGSTOP, then SIGCONT."""
    send(run, signal.SIGSTOP)
    time.sleep(seconds)
    send(run, signal.SIGCONT)


def rounds(soak: Soak, minutes: float, first: int | None, say: Callable[[str], None]) -> int:
    """Rounds until the time is up, every fourth a training; 1 where one was lost."""
    end, number, seeds = time.monotonic() + 60 * minutes, 0, random.Random(first)
    while time.monotonic() < end:
        seed = first if first is not None and not number else seeds.randrange(1 << 32)
        chance, kind = random.Random(seed), "training" if number % 4 == 1 else "preparing"
        say(f"round {number + 1}: {kind}, seed {seed}")
        try:
            (soak.train_round if kind == "training" else soak.prepare_round)(chance)
        except Lost as lost:
            say(f"LOST with seed {seed}: {lost}")
            return 1
        number += 1
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """0 where every end was the undisturbed one."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, help="of the first round")
    given = parser.parse_args(words)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background job, whose children inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    base = Path(tempfile.mkdtemp(prefix="soak-"))
    export_world(WORLD, base / "mirror", FAMILIES)
    begun = time.monotonic()
    with ExitStack() as held:
        try:
            disk = held.enter_context(small_disk(base / "disk", DISK))
        except pytest.skip.Exception as reason:
            disk = None
            print(f"full disks are left out: {reason}")
        soak = Soak(base, held.enter_context(Server(base / "mirror")), disk)
        soak.undisturbed()
        code = rounds(soak, given.minutes, given.seed, lambda line: print(line, flush=True))
    counted = " · ".join(f"{count} {name}" for name, count in sorted(soak.done.items()))
    end = "the end of one differs" if code else "every end is that of an undisturbed run"
    print(f"soak: {(time.monotonic() - begun) / 60:.1f} min · {counted} · {end}")
    if not code:
        shutil.rmtree(base, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
