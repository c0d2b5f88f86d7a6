"""What a run is a figure of: the machine and the commit; and how much of the machine others had meanwhile."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUIET_LOAD, QUIET_SHARE = 0.7, 0.1
"""Load of the last minute, and share of the cores in others' hands, from which on a machine is busy."""
KERNEL_THREAD = 0x00200000  # PF_KTHREAD of linux/sched.h


def machine() -> str:
    """Cores, processor, memory and versions, without the machine's name."""
    model = next(
        (line.partition(":")[2].strip() for line in lines_of("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({model or platform.machine()}), {memory:.0f} GiB, Python {platform.python_version()}"
    )


def commit() -> str:
    """The commit of this checkout; `+` and what tells its changes apart where it has any, "" where there is none."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(words, capture_output=True, text=True)
    found = done.stdout.strip() if done.returncode == 0 else ""
    if not found.endswith("+"):
        return found
    changes = subprocess.run(["git", "-C", str(ROOT), "diff", "HEAD"], capture_output=True).stdout
    return found + sha256(changes).hexdigest()[:8]


def lines_of(path: str) -> Iterator[str]:
    """The lines of a file of the kernel; none where it is not there."""
    try:
        yield from Path(path).read_text().splitlines()
    except OSError:
        return


def peak_memory() -> float:
    """MB that this process had resident at most. `ru_maxrss` would count from what its parent had when it began."""
    found = next((line for line in lines_of("/proc/self/status") if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(found.split()[1]) / 1024


def others_seconds() -> float:
    """Seconds that all cores have worked since the machine started, for whom we did not start.

    Interrupts and the kernel's threads are left out: on a quiet machine they work for us, as what we write goes to the
    disk and what we send comes back.
    """
    found = next((line.split()[1:] for line in lines_of("/proc/stat") if line.startswith("cpu ")), [])
    ticks = [int(one) for one in found]
    if not ticks:
        return 0.0
    busy = ticks[0] + ticks[1] + ticks[2] + sum(ticks[7:8])
    for process in Path("/proc").glob("[0-9]*"):
        told = next(lines_of(f"{process}/stat"), "").rpartition(")")[2].split()
        if told and int(told[6]) & KERNEL_THREAD:
            busy -= int(told[11]) + int(told[12])
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy / os.sysconf("SC_CLK_TCK") - sum(one.ru_utime + one.ru_stime for one in own)


class Watch:
    """The share of the cores that others have while this is open."""

    def __init__(self) -> None:
        self._others, self._since = others_seconds(), time.monotonic()

    def share(self) -> float:
        """Of all cores, since the start; processes of ours count once they have ended. The clock of cores ticks slowly:
        in less than seconds nothing is known."""
        elapsed = max(time.monotonic() - self._since, 1.0)
        return max(0.0, others_seconds() - self._others) / elapsed / (os.cpu_count() or 1)


def busy(seconds: float = 3.0) -> list[str]:
    """Why nothing should be measured now; nothing on a quiet machine."""
    load, watch = os.getloadavg()[0], Watch()
    time.sleep(seconds)
    share = watch.share()
    found = [f"a load of {load:.1f}"] if load > QUIET_LOAD else []
    return found + ([f"others have {share:.0%} of the cores"] if share > QUIET_SHARE else [])


def settled(patience: float) -> list[str]:
    """`busy`, once the load of what has just ended here is gone, which takes minutes; at once where others work."""
    until = time.monotonic() + patience
    while (found := busy()) and not any("others" in one for one in found) and time.monotonic() < until:
        time.sleep(5)
    return found
