"""What a piece of work costs: seconds, and the most memory it held."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

STATUS = Path("/proc/self/status")  # of this process; Linux only
CLEAR = Path("/proc/self/clear_refs")
KEYS = ("wall_s", "peak_gb", "peak_gpu_gb")


@contextlib.contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Measure what happens inside.

    Yields:
        A dict that is filled at the end: ``wall_s``, seconds; ``peak_gb``, the largest resident
        memory of this process meanwhile, in GB (left out where there is no Linux to ask);
        ``peak_gpu_gb``, the most that torch's tensors held on a CUDA GPU (left out without one).
    """
    cost: dict[str, float] = {}
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")  # the high-water mark begins anew
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    yield cost
    cost["wall_s"] = round(time.perf_counter() - start, 2)
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()):
            cost["peak_gb"] = round(int(found[1]) * 1024 / 1e9, 3)
    if torch.cuda.is_initialized():
        cost["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)


def added_up(parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Cost of work done in parts, one after the other: seconds add up, the largest peak counts.

    Args:
        parts: each as ``measured`` filled it; other keys are let alone.

    Returns:
        All three values, NaN where a part lacks one.
    """
    of = {key: [part.get(key, np.nan) for part in parts] for key in KEYS}
    return {key: float((np.sum if key == "wall_s" else np.max)(of[key])) for key in KEYS}
