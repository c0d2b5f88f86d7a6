"""Mutates inputs of every reader: `python -m tests.faults.fuzz --seconds 20 [--rounds N] [--target NAME] [--seed N]`.

Each target runs in a process of its own, with bounded memory, and each case under an alarm. A case passes if it ends
with a value or with an error of ours. The smallest case that does not is printed with the seed, and kept under
`--keep`; one that kills the process is kept as it was. Exit code 1 where anything was found.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from lavis_ext.common.errors import LavisExtError
from lavis_ext.fetch.transfer import Failure

OURS = (LavisExtError, Failure)
"""`Failure` is how an opener of a URL says that it cannot."""
SECONDS_A_CASE = 10.0
MEMORY_A_CASE = 2 << 30
"""Bytes of address space beyond what the process has when its imports are done."""
ROUND = 200
"""Cases between two looks at the clock."""

Case = Callable[[Any, Path], object]


def say(line: str) -> None:
    """One line on standard output, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Slow(BaseException):
    """A case that took longer than SECONDS_A_CASE; no reader may catch it as damage."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise Slow in the block after so long."""

    def ring(*_: object) -> None:
        raise Slow(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_case(case: Case, value: Any, folder: Path) -> None:
    """One case; raises whatever is not ours, Slow after SECONDS_A_CASE."""
    try:
        with alarm(SECONDS_A_CASE):
            case(value, folder)
    except OURS as error:
        if not str(error).strip():
            raise AssertionError("an error that says nothing") from error


def bound_memory() -> None:
    """Give this process MEMORY_A_CASE beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_A_CASE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def mutate(
    case: Case, values: st.SearchStrategy[Any], seconds: float, first: int, keep: Path, rounds: int = sys.maxsize
) -> tuple[int, BaseException | None]:
    """Draw values until time is up, the rounds are done, or one fails; the number of cases, and the failure.

    A failure has its smallest value. With `rounds` a fast machine draws no more than a slow one.
    """
    ended, count = time.monotonic() + seconds, [0]
    last = keep / "last.pickle"

    def attempt(value: Any) -> None:
        if time.monotonic() > ended + 60:
            return  # what is left of shrinking
        count[0] += 1
        last.write_bytes(pickle.dumps(value))
        with tempfile.TemporaryDirectory(dir=keep) as folder:
            run_case(case, value, Path(folder))

    number = first
    while time.monotonic() < ended and number < first + rounds:
        quiet = settings(
            max_examples=ROUND,
            deadline=None,
            database=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.target, Phase.shrink],
        )
        try:
            quiet(seed(number)(given(values)(attempt)))()
        except BaseException as error:
            return count[0], error
        number += 1
    last.unlink(missing_ok=True)
    return count[0], None


def child(name: str, seconds: float, first: int, keep: Path, rounds: int) -> int:
    """One target in this process; prints its line, and the finding if there is one."""
    from tests.faults.fuzz_targets import TARGETS

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    case, values = TARGETS[name]()
    bound_memory()
    began = time.monotonic()
    count, error = mutate(case, values, seconds, first, keep, rounds)
    line = f"{name:<12} seed {first}  {count:>7,} cases  {time.monotonic() - began:6.1f} s"
    if error is None:
        say(f"{line}  ok")
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 130
    say(f"{line}  FOUND {type(error).__name__}: {str(error)[:300]}")
    traceback.print_exception(error, limit=-8, chain=False, file=sys.stdout)
    say(f"the smallest case: {keep / 'last.pickle'}")
    return 1


def run_target(name: str, seconds: float, first: int, keep: Path, rounds: int) -> bool:
    """One target in a process of its own; whether nothing was found."""
    folder = keep / name
    folder.mkdir(parents=True, exist_ok=True)
    words = ["--child", "--target", name, "--seconds", str(seconds), "--seed", str(first), "--keep", str(folder)]
    words += ["--rounds", str(rounds)]
    around = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    around["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        done = subprocess.run([sys.executable, "-m", "tests.faults.fuzz", *words], env=around, timeout=seconds + 300)
    except subprocess.TimeoutExpired:
        say(f"{name:<12} seed {first}  FOUND: hangs in {folder / 'last.pickle'}")
        return False
    if done.returncode not in (0, 1):
        say(f"{name:<12} seed {first}  FOUND: code {done.returncode} in {folder / 'last.pickle'}")
    return done.returncode == 0


def main(words: list[str] | None = None) -> int:
    """Every target in turn, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each target (default: 20)")
    parser.add_argument("--rounds", type=int, default=sys.maxsize, help=f"at most, of {ROUND} cases each")
    parser.add_argument("--target", action="append", default=[], help="default: all")
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the cases (default: a new one)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    first = int.from_bytes(os.urandom(3), "big") if args.seed is None else args.seed
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # ten times the cases of a disk that is flushed
    keep = args.keep or Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory))
    if args.child:
        return child(args.target[0], args.seconds, first, keep, args.rounds)
    from tests.faults.fuzz_targets import TARGETS

    unknown = sorted(set(args.target) - set(TARGETS))
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    found = [name for name in args.target or TARGETS if not run_target(name, args.seconds, first, keep, args.rounds)]
    say(f"{len(args.target or TARGETS)} targets, seed {first}, found in: {', '.join(found) or 'none'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
