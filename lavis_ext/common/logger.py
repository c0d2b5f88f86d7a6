"""LAVIS' meters for loops of a script. A run of ours logs through its hooks (`runners/logs.py`)."""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from datetime import timedelta
from statistics import mean, median_low
from typing import Any

from lavis_ext.common.dist_utils import is_dist_avail_and_initialized, is_main_process

log = logging.getLogger(__name__)


class AttrDict(dict[str, Any]):
    """A dict whose keys are attributes too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__ = self


class SmoothedValue:
    """A series of numbers: `value`, `avg`, `median` and `max` of the last `window_size`, `global_avg` of all.

    Before the first number they are 0, where LAVIS divides by zero.
    """

    def __init__(self, window_size: int = 20, fmt: str | None = None) -> None:
        self.deque: deque[float] = deque(maxlen=window_size)
        self.total, self.count = 0.0, 0
        self.fmt = fmt or "{median:.4f} ({global_avg:.4f})"

    def update(self, value: float, n: int = 1) -> None:
        """Add a number that stands for `n`."""
        self.deque.append(value)
        self.count += n
        self.total += value * n

    def synchronize_between_processes(self) -> None:
        """Sum count and total over the joined processes; the window stays this one's."""
        if not is_dist_avail_and_initialized():
            return
        import torch
        import torch.distributed as dist

        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        both = torch.tensor([self.count, self.total], dtype=torch.float64, device=device)
        dist.all_reduce(both)
        self.count, self.total = int(both[0].item()), float(both[1].item())

    @property
    def median(self) -> float:
        """The lower median of the window, as torch has it."""
        return median_low(self.deque) if self.deque else 0.0

    @property
    def avg(self) -> float:
        """The mean of the window."""
        return mean(self.deque) if self.deque else 0.0

    @property
    def global_avg(self) -> float:
        """The mean of all."""
        return self.total / self.count if self.count else 0.0

    @property
    def max(self) -> float:
        """The largest of the window."""
        return max(self.deque, default=0.0)

    @property
    def value(self) -> float:
        """The last."""
        return self.deque[-1] if self.deque else 0.0

    def __str__(self) -> str:
        names = ("median", "avg", "global_avg", "max", "value")
        return self.fmt.format(**{name: getattr(self, name) for name in names})


class MetricLogger:
    """Meters by name, as attributes too, and a loop that logs them."""

    def __init__(self, delimiter: str = "\t") -> None:
        self.meters: defaultdict[str, SmoothedValue] = defaultdict(SmoothedValue)
        self.delimiter = delimiter

    def update(self, **kwargs: Any) -> None:
        """Add one number to each named meter; a tensor of one number is one."""
        for name, value in kwargs.items():
            self.meters[name].update(float(value.detach() if hasattr(value, "detach") else value))

    def __getattr__(self, name: str) -> SmoothedValue:
        meters: dict[str, SmoothedValue] = self.__dict__.get("meters", {})
        if name not in meters:
            raise AttributeError(f"no meter '{name}'")
        return meters[name]

    def __str__(self) -> str:
        return self.delimiter.join(f"{name}: {meter}" for name, meter in self.meters.items())

    def global_avg(self) -> str:
        """The mean of each meter over all its numbers."""
        return self.delimiter.join(f"{name}: {meter.global_avg:.4f}" for name, meter in self.meters.items())

    def synchronize_between_processes(self) -> None:
        """Sum every meter over the joined processes."""
        for meter in self.meters.values():
            meter.synchronize_between_processes()

    def add_meter(self, name: str, meter: SmoothedValue) -> None:
        """Use this meter for a name."""
        self.meters[name] = meter

    def log_every(self, iterable: Any, print_freq: int, header: str = "") -> Iterator[Any]:
        """The items; a line in the log at each `print_freq`-th and at the end. LAVIS prints it."""
        count = len(iterable) if hasattr(iterable, "__len__") else None
        started = time.monotonic()
        for number, item in enumerate(iterable):
            yield item
            if number % print_freq == 0 or number + 1 == count:
                each = (time.monotonic() - started) / (number + 1)
                left = timedelta(seconds=int(each * ((count or number + 1) - number - 1)))
                parts = (header, f"[{number}/{count or '?'}]", f"eta: {left}", str(self), f"time: {each:.4f}")
                log.info("%s", self.delimiter.join(part for part in parts if part))
        log.info("%s Total time: %s", header, timedelta(seconds=int(time.monotonic() - started)))


def setup_logger() -> None:
    """Lines of process 0 from INFO on, of others from WARNING on, as LAVIS has them."""
    level = logging.INFO if is_main_process() else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s [%(levelname)s] %(message)s")
