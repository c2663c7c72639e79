"""Say how far long work has come, and how long it will still take."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
# Steps done, all steps, and the newest row of a training's log or {"phase": what is done}.
Progress = Callable[[int, int, Mapping[str, Any]], None]


def each(items: Sequence[Item], progress: Progress | None, phase: str) -> Iterator[Item]:
    """Yield ``items``; tell ``progress`` of each one that is done, beginning with 0 of them."""
    for done, item in enumerate(items):
        if progress:
            progress(done, len(items), {"phase": phase})
        yield item
    if progress and items:
        progress(len(items), len(items), {"phase": phase})


def in_phase(progress: Progress | None, phase: str) -> Progress | None:
    """Return ``progress`` for a training that is one ``phase`` of several."""
    if progress is None:
        return None
    return lambda step, steps, row: progress(step, steps, {**row, "phase": phase})


def print_progress(label: str, every_s: float = 5.0) -> Progress:
    """Return a progress function: a bar if a person watches, else a line every ``every_s`` s.

    A line also marks the begin and the end of a phase. The time left is shown once a step of the
    phase (or training) has been measured.
    """
    return _bars(label) if watched() else _lines(label, every_s)


def _lines(label: str, every_s: float) -> Progress:
    phase, first = None, math.inf  # of this phase: its name, and the step of its first call,
    begin = last = 0.0  # which is not 0 after a resume; times of that call and of the last line

    def lines(step: int, steps: int, row: Mapping[str, Any]) -> None:
        nonlocal phase, first, begin, last
        now = time.monotonic()
        if step <= first or row.get("phase") != phase:
            phase, first, begin = row.get("phase"), step, now
        elif now - last < every_s and step < steps:
            return
        last = now
        words = [f"{label}: {phase} {step}/{steps}" if phase else f"{label} {step}/{steps}"]
        words += [f"loss {row['loss']:.3f}"] if "loss" in row else []
        if step > first:
            left = (now - begin) / (step - first) * (steps - step)
            words.append(f"{now - begin:.0f} s, {left:.0f} s left")
        print("  ".join(words), flush=True)

    return lines


def _bars(label: str) -> Progress:
    from tqdm.auto import tqdm  # in a notebook it takes long to import

    bar: Any = None

    def bars(step: int, steps: int, row: Mapping[str, Any]) -> None:
        nonlocal bar
        if bar is None:
            name = f"{label}: {row['phase']}" if "phase" in row else label
            bar = tqdm(desc=name, total=steps, initial=step)
        if "loss" in row:
            bar.set_postfix(loss=row["loss"], refresh=False)
        bar.update(step - bar.n)
        if step == steps:
            bar.close()
            bar = None  # the next phase or training has its own

    return bars


def watched() -> bool:
    """Return whether a person sees the output: in a terminal, or in a notebook they run."""
    in_notebook = "ipykernel" in sys.modules and os.environ.get("UMSF_HEADLESS") != "1"
    return in_notebook or sys.stderr.isatty()
