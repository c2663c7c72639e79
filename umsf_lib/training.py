"""One training loop for everything that is trained: it takes a step function.

It logs without waiting for the device at every step, checkpoints so that a resumed run ends where
an unbroken one does, and says what to do when memory or numbers run out.
"""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import CheckpointError, ConfigError
from .runs import differences, sha256_of, write_atomically

Row = dict[str, float]
Metrics = Mapping[str, Tensor | float]


def cosine_with_warmup(step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rate: linear rise over ``warmup`` steps, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def print_progress(label: str, every_s: float = 5.0) -> Callable[[int, int, Row], None]:
    """A progress function that prints one plain line every few seconds, so logs stay readable."""
    start = time.monotonic()
    last = [start]

    def progress(step: int, steps: int, row: Row) -> None:
        now = time.monotonic()
        if now - last[0] < every_s and step < steps:
            return
        last[0] = now
        left = (now - start) / step * (steps - step)
        loss = f"loss {row['loss']:.3f}" if "loss" in row else ""
        print(f"{label} {step}/{steps}  {loss}  {now - start:.0f} s, {left:.0f} s left", flush=True)

    return progress


@dataclass
class Checkpoints:
    """Checkpoints of one training: ``step-NNNNNN-<sha256 prefix>.pt``, the last two kept.

    The hash in the name makes one rename the whole transaction, and shows a damaged file, which
    ``torch.load`` itself would accept.
    """

    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after ``step`` steps and drop all but the last two."""
        content = {"step": step, "settings": dict(self.settings), **state}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        sha = hashlib.sha256(buffer.getbuffer()).hexdigest()[:12]
        path = self.folder / f"step-{step:06d}-{sha}.pt"
        write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))
        for old in self.paths()[:-2]:
            old.unlink()
        return path

    def paths(self) -> list[Path]:
        """Checkpoint files, oldest first."""
        return sorted(self.folder.glob("step-*.pt"), key=lambda path: int(path.stem.split("-")[1]))

    def load_latest(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, or None.

        Raises:
            CheckpointError: it was made with other settings; the differences are listed.
        """
        for path in reversed(self.paths()):
            if path.stem.rpartition("-")[2] == sha256_of(path)[:12]:
                return load_checkpoint(path, self.settings)
        return None


def load_checkpoint(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint on the CPU and compare its settings with the wanted ones.

    Raises:
        CheckpointError: unreadable, or made with other settings.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        old = content["settings"]
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({reason}); delete it."
        ) from error
    if listed := differences(old, settings):
        raise CheckpointError(
            f"{path} was made with other settings ({listed}); "
            "choose another run name, or delete the checkpoint to train again."
        )
    return content


def random_state(generator: torch.Generator) -> dict[str, Any]:
    """Random state of the training generator and of torch itself."""
    state: dict[str, Any] = {"generator": generator.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: Mapping[str, Any], generator: torch.Generator) -> None:
    """Inverse of ``random_state``."""
    generator.set_state(state["generator"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


def train(
    module: nn.Module,
    loss_of: Callable[[int], tuple[Tensor, Metrics]],
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    generator: torch.Generator,
    warmup: int = 0,
    amp: bool = False,
    after_step: Callable[[int], None] | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 100,
    log_every: int = 10,
    progress: Callable[[int, int, Row], None] | None = None,
) -> list[Row]:
    """Train ``module`` for ``steps`` steps, from its newest checkpoint if there is one.

    Args:
        module: holds every weight and buffer of the training, key networks and queues included.
        loss_of: step number -> loss and further scalars to log.
        optimizer: over the parameters that learn; its learning rates are the peaks.
        steps: in total.
        generator: the source of every random draw inside ``loss_of``; saved and restored.
        warmup: steps of linear rise before the cosine.
        amp: bfloat16 autocast, on CUDA only.
        after_step: called after the optimiser step (momentum update of a teacher, enqueue).
        checkpoints: where to save and resume; None: nowhere.
        checkpoint_every: steps.
        log_every: steps between rows of the log; the device is waited for only then.
        progress: called with step, steps and the newest row.

    Returns:
        One row per ``log_every`` steps: ``step``, ``loss``, ``lr`` and what ``loss_of`` logs.

    Raises:
        ConfigError: the loss is no longer finite, or the device is out of memory.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    start, rows = _resume(module, optimizer, generator, checkpoints)
    device = next(module.parameters()).device
    step = start
    try:
        for step in range(start, steps):
            factor = cosine_with_warmup(step, steps, warmup)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            with torch.autocast(device.type, torch.bfloat16, enabled=amp and device.type == "cuda"):
                loss, metrics = loss_of(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if after_step:
                after_step(step)
            done = step + 1
            if done % log_every == 0 or done == steps:
                rows.append(_row(done, loss, optimizer.param_groups[0]["lr"], metrics))
            if progress and rows:
                progress(done, steps, rows[-1])
            if checkpoints and (done % checkpoint_every == 0 or done == steps):
                _refuse_nan(float(loss.detach()), done)  # else every resume would start from it
                _save(checkpoints, done, module, optimizer, generator, rows)
    except torch.cuda.OutOfMemoryError as error:
        raise ConfigError(
            "the GPU is out of memory; halve the batch (override pretrain.batch or cluster.batch)."
        ) from error
    return rows


def _row(step: int, loss: Tensor, lr: float, metrics: Metrics) -> Row:
    row = {"step": float(step), "loss": float(loss.detach()), "lr": lr}
    for name, value in metrics.items():
        row[name] = float(value.detach() if isinstance(value, Tensor) else value)
    _refuse_nan(row["loss"], step)
    return row


def _refuse_nan(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise ConfigError(f"the loss is {loss} at step {step}; lower the learning rate.")


def _save(
    checkpoints: Checkpoints,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    rows: list[Row],
) -> None:
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "rows": rows}
    checkpoints.save(step, state | {"random": random_state(generator)})


def _resume(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    checkpoints: Checkpoints | None,
) -> tuple[int, list[Row]]:
    state = checkpoints.load_latest() if checkpoints else None
    if state is None:
        return 0, []
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    restore_random_state(state["random"], generator)
    return state["step"], state["rows"]


def trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters that require a gradient."""
    return [p for p in parameters if p.requires_grad]
