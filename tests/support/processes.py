"""Ranks of a run, and commands, as quick as a blink: processes forked from one that has torch loaded."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_ext.demo.steps import read_objects

LIMIT_S = 120
_RESERVED: list[socket.socket] = []


@dataclass(frozen=True)
class Ended:
    """How a group of ranks ended: the worst exit code, and what they wrote."""

    returncode: int
    stderr: str


def run_ranks(work: Callable[..., None], count: int, args: Sequence[Any], folder: Path) -> Ended:
    """Call `work(*args)` on `count` ranks over gloo; what they say lands in `folder`."""
    port = free_port()
    ranks = [forked().Process(target=one_rank, args=(work, rank, count, port, args, folder)) for rank in range(count)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(LIMIT_S)
    hung = [process for process in ranks if process.is_alive()]
    for process in hung:
        process.kill()
        process.join()
    told = "".join(file.read_text() for file in sorted(folder.glob("stderr_*")))
    return Ended(1 if hung else max(abs(process.exitcode or 0) for process in ranks), told)


def forked() -> Any:
    """The context whose processes are forked from a server that has imported the models: one server for all tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.support.kill", "tests.support.ranks", "tests.support.distill_ranks", "tests.support.blip2"]
        + ["tests.support.deaths", "lavis_ext.datasets.builders.image_caption", "lavis_ext.tasks.captioning"]
        + ["lavis_ext.cli.runs", "lavis_ext.runners.run", "lavis_ext.prepare", "pandas", "pycocoevalcap.cider.cider"]
        + [f"transformers.models.{name}" for name in ("auto.processing_auto", "opt.modeling_opt")]
        + ["transformers.models.blip_2.modeling_blip_2", "transformers.convert_slow_tokenizer"]
    )
    return context


def one_rank(work: Callable[..., None], rank: int, count: int, port: int, args: Sequence[Any], folder: Path) -> None:
    """What a process does: become a rank, then work."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    with (folder / f"stderr_{rank}").open("w") as file:
        sys.stderr = file
        try:
            work(*args)
        except BaseException:
            traceback.print_exc()
            file.flush()
            os._exit(1)  # the others wait in a collective: nothing may be joined
    leave()


def start_command(
    words: Sequence[str], environment: Mapping[str, str], held: int = 0, said: Sequence[Path | str] = (os.devnull,) * 2
) -> Any:
    """The process of `lavis-ext WORDS`, or of the script (.py) that comes first, with exactly this environment.

    What it prints lands in the first file of `said` and what it logs in the second.
    A training stands still for good behind the `held`-th checkpoint that it writes, unless that is 0.
    """
    given = (list(words), dict(environment), held, [str(path) for path in said])
    process = forked().Process(target=command, args=given)
    process.start()
    return process


def command(words: list[str], environment: dict[str, str], held: int, said: list[str]) -> None:
    """What the process of a command does."""
    from lavis_ext.cli import main
    from lavis_ext.runners import checkpoint

    point, left = checkpoint._point, iter(range(held, 0, -1))

    def pointing(pointer: Path, *given: Any) -> None:
        point(pointer, *given)
        if pointer.name == "latest.json" and next(left, 0) == 1:
            time.sleep(LIMIT_S)

    checkpoint._point = pointing
    os.environ.clear()
    os.environ.update(environment, OMP_NUM_THREADS="1")
    with Path(said[0]).open("w") as sys.stdout, Path(said[1]).open("w") as sys.stderr:
        for number, file in enumerate((sys.stdout, sys.stderr), 1):
            os.dup2(file.fileno(), number)
        try:
            if words[0].endswith(".py"):
                sys.argv = words
                runpy.run_path(words[0], run_name="__main__")
            else:
                sys.exit(main(words))
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
            code = 99
        for file in (sys.stdout, sys.stderr):
            file.flush()
        os._exit(code)


def verb_in_a_fork(words: list[str], environment: Mapping[str, str], log_file: Path) -> list[dict[str, Any]]:
    """What `lavis_ext.demo.steps.run_verb` does, without the seconds of imports; the verb must end well."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    answers = log_file.with_suffix(".jsonl")
    process = start_command([*words, "--json"], {**os.environ, **environment}, said=(answers, log_file))
    process.join(LIMIT_S)
    assert process.exitcode == 0, log_file.read_text()
    return read_objects(answers)


def exit_code(work: Callable[..., object], *args: Any) -> int:
    """How a process ends that calls `work(*args)`: 0, the code of an error of ours, or minus the signal."""
    process = forked().Process(target=coded, args=(work, args))
    process.start()
    process.join(LIMIT_S)
    process.kill()
    process.join()
    return int(process.exitcode)


def coded(work: Callable[..., object], args: Sequence[Any]) -> None:
    """Call it in a process of its own, whose exit code says how that ended."""
    from lavis_ext.common.errors import LavisExtError

    try:
        work(*args)
    except LavisExtError as error:
        os._exit(error.exit_code)


def leave() -> None:
    """Leave the group, as a script's end would."""
    from lavis_ext.runners.device import leave_group

    leave_group()


def free_port() -> int:
    """A port that nobody else is given while this process lives, and at which connections are refused.

    It is bound and not listened at: who sets SO_REUSEADDR, as torch's store and Node do, may listen there all the same.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _RESERVED.append(held)
    return int(held.getsockname()[1])


def descendants(pid: int) -> dict[int, str]:
    """The processes below one that lives, and when each began, by which a reused pid is told."""
    found: dict[int, str] = {}
    with suppress(OSError):  # a thread, or the process itself, has ended meanwhile
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            with suppress(OSError):
                for child in map(int, (task / "children").read_text().split()):
                    found |= {child: began(child), **descendants(child)}
    return found


def began(pid: int) -> str:
    """The start of a process in ticks since boot; nothing where it has ended."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else numbers[18]


def all_ended(processes: Mapping[int, str]) -> bool:
    """Whether none of these is left."""
    return not any(start and began(pid) == start for pid, start in processes.items())
