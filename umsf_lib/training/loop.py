"""One training loop for all networks, which takes a step function.

It logs without waiting for the device at every step. It writes checkpoints, so that a resumed run
gives the same result as an uninterrupted one. Its errors say what to do if memory is full or the
loss is not finite.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from ..config import ConfigError, UmsfError
from ..run import write_atomically
from .checkpoints import (
    Checkpoints,
    StepStart,
    StopRequest,
    load_weights,
    random_state,
    restore_random_state,
)
from .distributed import (
    ProcessLostError,
    any_process,
    mean_over_processes,
    rank,
    report_lost_process,
)

Row = dict[str, float]
Metrics = Mapping[str, Tensor | float]


def cosine_with_warmup(step: int, steps: int, warmup: int) -> float:
    """Return the factor on the learning rate: linear over ``warmup`` steps, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def print_progress(label: str, every_s: float = 5.0) -> Callable[[int, int, Row], None]:
    """Return a progress function that prints one line every ``every_s`` seconds."""
    begin = last = time.monotonic()
    first = -1  # a resumed training does not begin at 0

    def progress(step: int, steps: int, row: Row) -> None:
        nonlocal first, last
        now = time.monotonic()
        first = step - 1 if first < 0 else first
        if now - last < every_s and step < steps:
            return
        last = now
        left = (now - begin) / (step - first) * (steps - step)
        loss = f"loss {row['loss']:.3f}" if "loss" in row else ""
        print(f"{label} {step}/{steps}  {loss}  {now - begin:.0f} s, {left:.0f} s left", flush=True)

    return progress


def train(
    module: nn.Module,
    loss_of: Callable[[int], tuple[Tensor, Metrics]],
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    generator: torch.Generator,
    batch: tuple[str, int],
    warmup: int = 0,
    amp: bool = False,
    after_step: Callable[[int], None] | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 100,
    log_every: int = 10,
    progress: Callable[[int, int, Row], None] | None = None,
) -> list[Row]:
    """Train ``module`` up to step ``steps``, from its newest checkpoint if there is one.

    With several processes (see ``distributed.processes``), all of them call this function, and the
    first process writes the files.

    Args:
        module: holds all weights and buffers of the training, with key networks and queues.
        loss_of: step number -> loss and further scalars to log. It must change nothing but random
            states and normalisation statistics, so that a failed step can be undone.
        optimizer: for the trained parameters; its learning rates are the peak values.
        steps: total number of steps.
        generator: source of all random draws in ``loss_of``; saved and restored.
        batch: name and size of the batch, for the error message when memory is full.
        warmup: number of steps with a linear rise of the learning rate, before the cosine.
        amp: use bfloat16 autocast, on CUDA only.
        after_step: called with the step number after the optimiser step (for the momentum update
            of a teacher or a queue).
        checkpoints: where to save and resume; None: no checkpoints. With checkpoints, Ctrl-C and
            SIGTERM end the training after the current step.
        checkpoint_every: number of steps between checkpoints.
        log_every: number of steps between rows of the log; only these wait for the device.
        progress: called with step, steps and the newest row.

    Returns:
        One row per ``log_every`` steps: ``step``, ``loss``, ``lr`` and the scalars of ``loss_of``.

    Raises:
        ConfigError: the loss or a weight is not finite, or memory is full.
        ProcessLostError: another process of this training has died.
        Stopped: Ctrl-C or SIGTERM stopped the training.
    """
    state = _State(module, optimizer, generator, checkpoints)
    peaks = [group["lr"] for group in optimizer.param_groups]
    start, device = state.resume(), next(module.parameters()).device
    before, changed = StepStart(module, generator), False
    with StopRequest(enabled=checkpoints is not None) as stop:
        for step in range(start, steps):
            if checkpoints:
                before.remember()
            factor = cosine_with_warmup(step, steps, warmup)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.zero_grad(set_to_none=True)
            try:
                with report_lost_process():
                    bfloat16 = amp and device.type == "cuda"
                    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                        loss, metrics = loss_of(step)
                    loss.backward()
                changed = True
                optimizer.step()
                if after_step:
                    after_step(step)
                changed = False
            except (RuntimeError, MemoryError, ProcessLostError) as error:
                said = explain(error, batch)
                if said is None:
                    raise
                kept = state.newest() if changed else state.take_back(step, before, said)
                raise type(said)(f"{said} (in step {step + 1}); {kept}.") from error
            done = step + 1
            state.losses.append(loss.detach())
            # A checkpoint needs this step's row of the log to be exact.
            rescued: Callable[[], str] = state.newest
            try:
                if done % log_every == 0 or done == steps:
                    state.log(done, metrics)
                rescued = partial(state.kept, done)
                stopping = any_process(stop.number > 0)
            except ProcessLostError as error:
                raise ProcessLostError(f"{error} (after step {done}); {rescued()}.") from error
            if progress and state.rows:
                progress(done, steps, state.rows[-1])
            if checkpoints and (stopping or done % checkpoint_every == 0 or done == steps):
                path = state.save(done)
                if stopping and done < steps:
                    raise stop.stopped(done, steps, path)
    return state.rows


def explain(error: Exception, batch: tuple[str, int]) -> UmsfError | None:
    """Convert an error in a step to one that a user can fix; None if the user cannot.

    Args:
        error: the error that was raised.
        batch: see ``train``.
    """
    if isinstance(error, ProcessLostError):
        return error
    full = isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
    if not full and "DefaultCPUAllocator" not in str(error):
        return None
    name, size = batch
    half = f"about half should fit: override {name}={size // 2}"
    smaller = half if size > 1 else "choose smaller windows or a smaller network"
    return ConfigError(f"memory is full with {name} {size}; {smaller}")


class _State:
    """The state that checkpoints hold, and the losses that have not been read yet."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.module, self.optimizer, self.generator = module, optimizer, generator
        self.checkpoints = checkpoints
        self.rows: list[Row] = []
        self.losses: list[Tensor] = []  # still on the device

    def resume(self) -> int:
        """Restore the newest checkpoint, if there is one; return its number of steps."""
        if self.checkpoints is None:
            return 0
        state = self.checkpoints.load_latest()
        if state is None:
            return 0
        load_weights(self.module, state["module"], self.checkpoints.folder)
        self.optimizer.load_state_dict(state["optimizer"])
        restore_random_state(state["random"], self.generator)
        self.rows = state["rows"]
        return int(state["step"])

    def save(self, done: int) -> Path | None:
        """Save a checkpoint after ``done`` steps in the first process, if all values are finite."""
        self._look(done)  # else a resumed training would start from values that are not finite
        weights = self.module.state_dict()
        finite = torch.stack([w.isfinite().all() for w in weights.values()])
        if not bool(finite.all()):  # one wait for the device
            raise self._divergence(f"a weight is not finite after step {done}")
        if self.checkpoints is None or rank() > 0:
            return None
        state = {"module": weights, "optimizer": self.optimizer.state_dict(), "rows": self.rows}
        return self.checkpoints.save(done, state | {"random": random_state(self.generator)})

    def take_back(self, step: int, before: StepStart, error: UmsfError) -> str:
        """Undo the failed step and save a checkpoint of the state before it."""
        lost = isinstance(error, ProcessLostError)
        if self._saves(lost):
            before.restore()
        return self.kept(step, lost)

    def kept(self, done: int, lost: bool = True) -> str:
        """Save a checkpoint after ``done`` steps if possible; say which one is the newest."""
        path = self.save(done) if self._saves(lost) else None
        return self.newest() if path is None else f"checkpoint after step {done}: {path}"

    def _saves(self, lost: bool) -> bool:
        """Return whether to save; a GPU may wait for ever for a lost process."""
        return self.checkpoints is not None and not (lost and torch.cuda.is_available())

    def newest(self) -> str:
        """Say from which checkpoint the training can be resumed."""
        paths = self.checkpoints.paths() if self.checkpoints else []
        return f"last good checkpoint: {paths[-1]}" if paths else "there is no checkpoint"

    def log(self, done: int, metrics: Metrics) -> None:
        """Append a row to the log, averaged over the processes; waits for the device."""
        loss = self._look(done)[-1]
        device = next(self.module.parameters()).device
        values = [torch.as_tensor(v, device=device).detach().double() for v in metrics.values()]
        plain = torch.stack(values).tolist() if values else []  # one wait for the device
        means = dict(zip(("loss", *metrics), mean_over_processes([loss, *plain]), strict=True))
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.rows.append({"step": float(done), "loss": means.pop("loss"), "lr": lr} | means)

    def _look(self, done: int) -> list[float]:
        """Return the losses since the last call and check them; waits for the device once."""
        losses: list[float] = torch.stack(self.losses).tolist() if self.losses else []
        self.losses.clear()
        for step, loss in enumerate(losses, done - len(losses) + 1):
            if not math.isfinite(loss):
                raise self._divergence(f"the loss is {loss} at step {step}")
        return losses

    def _divergence(self, what: str) -> ConfigError:
        peak = self.optimizer.param_groups[0]["lr"]
        return ConfigError(
            f"{what}; {self.newest()}; likely causes: the learning rate is too high (now "
            f"{peak:.2g}: lower it or warm up for longer) or a pixel of the input is not finite."
        )


def trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters that require a gradient."""
    return [p for p in parameters if p.requires_grad]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write a training log as CSV."""
    write_atomically(path, lambda temporary: pd.DataFrame(rows).to_csv(temporary, index=False))
