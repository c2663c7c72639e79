"""One training loop for all networks, which takes a step function.

It logs without waiting for the device at every step. It writes checkpoints, so that a resumed run
gives the same result as an uninterrupted one. Its errors say what to do if memory is full or the
loss is not finite. With several processes (see ``distributed``), all of them call ``train``, and
the first one writes the files.
"""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from ..config import ConfigError, Stopped
from ..progress import Progress
from ..progress import print_progress as print_progress  # handed on by the package
from ..run import write_atomically
from .checkpoints import (
    Checkpoints,
    delayed_signals,
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

Row = dict[str, float]  # of the log: step, loss, lr and the scalars of ``loss_of``
Metrics = Mapping[str, Tensor | float]
LossOf = Callable[[int], tuple[Tensor, Metrics]]
Schedule = Callable[[int, int], float]


def train(
    module: nn.Module,
    loss_of: LossOf,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    generator: torch.Generator,
    batch: tuple[str, int],
    schedule: Schedule | None = None,
    amp: bool = False,
    after_step: Callable[[int], None] = lambda step: None,
    checkpoints: Checkpoints | None = None,
    log_every: int = 10,
    progress: Progress | None = None,
) -> list[Row]:
    """Train ``module`` up to step ``steps``, from its newest checkpoint if any; return the log.

    Args:
        module: holds all weights and buffers of the training, with key networks and queues.
        loss_of: step number -> loss and further scalars to log.
        optimizer: for the trained parameters; its learning rates are the peak values.
        steps: total number of steps.
        generator: source of all random draws in ``loss_of``; saved and restored.
        batch: name and size of the batch, for the error message when memory is full.
        schedule: step, number of steps -> factor on the learning rate; default
            ``cosine_with_warmup``.
        amp: use bfloat16 autocast, on CUDA only.
        after_step: called with the step number after the optimiser step.
        checkpoints: where to save and resume; Ctrl-C and SIGTERM then wait for the end of a step.
        log_every: number of steps between rows of the log; only these wait for the device.
        progress: told before the first step and after each one.

    Raises:
        ConfigError: the loss or a weight is not finite, or memory is full.
        ProcessLostError: another process of this training has died.
        Stopped: Ctrl-C or SIGTERM stopped the training.
    """
    state = _State(module, optimizer, generator, checkpoints)
    if state.done < steps:
        state.tell(progress, steps)
    with delayed_signals(enabled=checkpoints is not None) as signals:
        while state.done < steps:
            with state.explained(batch):
                factor = (schedule or cosine_with_warmup)(state.done, steps)
                metrics = state.step(loss_of, factor, amp)
                after_step(state.done - 1)
                if state.done % log_every == 0 or state.done == steps:
                    state.log(metrics)
                state.tell(progress, steps)
                state.save_if_due(steps, signals)
    return state.rows


class _State:
    """The state that checkpoints hold, and the losses that have not been read yet."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        checkpoints: Checkpoints | None,
    ) -> None:
        """Restore the newest checkpoint, if there is one."""
        self.module, self.optimizer, self.generator = module, optimizer, generator
        self.checkpoints, self.device = checkpoints, next(module.parameters()).device
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.losses: list[Tensor] = []  # still on the device
        self.rows: list[Row] = []
        self.done = 0  # steps
        if checkpoints and (saved := checkpoints.load_latest()):
            load_weights(module, saved["module"], checkpoints.folder)
            optimizer.load_state_dict(saved["optimizer"])
            restore_random_state(saved["random"], generator)
            self.rows, self.done = saved["rows"], saved["step"]

    def tell(self, progress: Progress | None, steps: int) -> None:
        """Tell the step and the newest row of the log."""
        if progress:
            progress(self.done, steps, self.rows[-1] if self.rows else {})

    def step(self, loss_of: LossOf, factor: float, amp: bool) -> Metrics:
        """Take one step at ``factor`` times the learning rate; return what it may log."""
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self.optimizer.zero_grad(set_to_none=True)
        bfloat16 = amp and self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            loss, metrics = loss_of(self.done)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.detach())
        self.done += 1
        return metrics

    def log(self, metrics: Metrics) -> None:
        """Append a row to the log, averaged over the processes; waits for the device."""
        loss = self._finite_losses()[-1]
        values = [
            torch.as_tensor(v, device=self.device).detach().double() for v in metrics.values()
        ]
        plain = torch.stack(values).tolist() if values else []  # one wait for the device
        means = dict(zip(("loss", *metrics), mean_over_processes([loss, *plain]), strict=True))
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.rows.append({"step": float(self.done), "loss": means.pop("loss"), "lr": lr} | means)

    def save_if_due(self, steps: int, signals: list[int]) -> None:
        """Save a checkpoint every so many steps, at the end, and before ending by a signal."""
        if self.checkpoints is None:
            return
        stopping = any_process(bool(signals))
        if not (stopping or self.done % self.checkpoints.every == 0 or self.done == steps):
            return
        self._finite_losses()  # else a resumed training would start from values that are not finite
        weights, path = self.module.state_dict(), None
        finite = torch.stack([w.isfinite().all() for w in weights.values()])
        if not bool(finite.all()):  # one wait for the device
            raise self._divergence(f"a weight is not finite after step {self.done}")
        if rank() == 0:
            state = {"module": weights, "optimizer": self.optimizer.state_dict(), "rows": self.rows}
            state["random"] = random_state(self.generator)
            path = self.checkpoints.save(self.done, state)
        if stopping and self.done < steps:
            number = signal.Signals([*signals, signal.SIGTERM][0])  # another process may have it
            raise Stopped(
                f"stopped by {number.name} after step {self.done} of {steps}; checkpoint: {path}; "
                "the same command goes on from there.",
                number,
            )

    def _finite_losses(self) -> list[float]:
        """Return the losses since the last call and check them; waits for the device once."""
        losses: list[float] = torch.stack(self.losses).tolist() if self.losses else []
        self.losses.clear()
        for step, loss in enumerate(losses, self.done - len(losses) + 1):
            if not math.isfinite(loss):
                raise self._divergence(f"the loss is {loss} at step {step}")
        return losses

    def _divergence(self, what: str) -> ConfigError:
        rate = self.optimizer.param_groups[0]["lr"]
        return ConfigError(
            f"{what}; {self.newest()}; likely causes: the learning rate is too high (now "
            f"{rate:.2g}: lower it or warm up for longer) or a pixel of the input is not finite."
        )

    def newest(self) -> str:
        """Say from which checkpoint the training can go on."""
        paths = self.checkpoints.paths() if self.checkpoints else []
        return f"last good checkpoint: {paths[-1]}" if paths else "there is no checkpoint"

    @contextlib.contextmanager
    def explained(self, batch: tuple[str, int]) -> Iterator[None]:
        """Say in one sentence what a user can do if memory is full or a process has died."""
        step = self.done + 1
        try:
            with report_lost_process():
                yield
        except ProcessLostError as error:
            raise ProcessLostError(f"{error} (in step {step}); {self.newest()}.") from error
        except (RuntimeError, MemoryError) as error:
            full = isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
            if not full and "DefaultCPUAllocator" not in str(error):
                raise
            name, size = batch
            half = f"about half should fit: override {name}={size // 2}"
            smaller = half if size > 1 else "choose smaller windows or a smaller network"
            raise ConfigError(
                f"memory is full with {name} {size}; {smaller} (in step {step}); {self.newest()}."
            ) from error


def cosine_with_warmup(step: int, steps: int, warmup: int = 0) -> float:
    """Return the factor on the learning rate: linear over ``warmup`` steps, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def polynomial(step: int, steps: int, power: float) -> float:
    """Return the factor on the learning rate: from 1 to 0 as a power of what is left."""
    return float((1 - step / steps) ** power)


def trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters that require a gradient."""
    return [p for p in parameters if p.requires_grad]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write a training log as CSV."""
    write_atomically(path, lambda temporary: pd.DataFrame(rows).to_csv(temporary, index=False))
