"""What an interruption leaves: a training that is resumed ends where an unbroken one does.

A checkpoint holds everything that the next steps depend on: weights, queues, optimiser, log, and
the state of every source of random numbers. The schedule is a function of the step, and bfloat16
needs no loss scaler, so neither has a state to keep.
"""

from __future__ import annotations

import hashlib
import io
import random
import signal
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..config import CheckpointError
from ..run import differences, sha256_of, write_atomically


def pack(content: Mapping[str, Any]) -> memoryview:
    """Bytes of a file for ``torch.load``; saved to a path, they would hold its temporary name."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors, atomically; equal states give equal files."""
    write_atomically(path, lambda temporary: temporary.write_bytes(pack(state)))


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
        content = pack({"step": step, "settings": dict(self.settings), **state})
        sha = hashlib.sha256(content).hexdigest()[:12]
        path = self.folder / f"step-{step:06d}-{sha}.pt"
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
        for old in self.paths()[:-2]:
            old.unlink()
        return path

    def paths(self) -> list[Path]:
        """Checkpoint files, oldest first."""
        return sorted(self.folder.glob("step-*.pt"), key=lambda path: int(path.stem.split("-")[1]))

    def load_latest(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, or None; damaged ones are passed over with a warning.

        Raises:
            CheckpointError: it was made with other settings; the differences are listed.
        """
        for half in self.folder.glob(".tmp-*.pt"):  # of a process that was killed while it wrote
            half.unlink(missing_ok=True)
        for path in reversed(self.paths()):
            if path.stem.rpartition("-")[2] == sha256_of(path)[:12]:
                return load_checkpoint(path, self.settings)
            warnings.warn(
                f"{path} is damaged: its content does not have the sha256 in its name; "
                "training goes on from the one before it, or from the start.",
                stacklevel=2,
            )
        return None


def load_checkpoint(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint on the CPU and compare its settings with the wanted ones.

    Raises:
        CheckpointError: unreadable, or made with other settings.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        listed = differences(content["settings"], settings)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({reason}); delete it."
        ) from error
    if listed:
        raise CheckpointError(
            f"{path} was made with other settings ({listed}); "
            "choose another run name, or delete the checkpoint to train again."
        )
    return content


def load_weights(module: nn.Module, weights: Mapping[str, Any], path: Path) -> None:
    """Give a module the weights of a checkpoint.

    Raises:
        CheckpointError: they are of another network, made by another version of this module.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"{path} holds weights of another version of the network ({reason}); "
            "choose another run name, or delete the run to train again."
        ) from error


def random_state(generator: torch.Generator) -> dict[str, Any]:
    """State of the training's own generator, torch, CUDA, NumPy and Python, as plain data."""
    kind, key, *rest = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "generator": generator.get_state(),
        "torch": torch.get_rng_state(),
        "numpy": (kind, torch.from_numpy(np.asarray(key, np.int64)), *rest),
        "python": (version, torch.tensor(words), gauss),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any], generator: torch.Generator) -> None:
    """Inverse of ``random_state``."""
    generator.set_state(state["generator"])
    torch.set_rng_state(state["torch"])
    kind, key, *rest = state["numpy"]
    np.random.set_state((kind, key.numpy().astype(np.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


class StepStart:
    """What a forward pass changes, as it was before the step: a step that failed is taken back."""

    def __init__(self, module: nn.Module, generator: torch.Generator) -> None:
        self.generator = generator
        norms = [m for m in module.modules() if isinstance(m, _NormBase) and m.training]
        self.now = [buffer for norm in norms for buffer in norm.buffers()]
        self.then = [buffer.clone() for buffer in self.now]

    def remember(self) -> None:
        """The step begins."""
        self.random = random_state(self.generator)
        if self.now:
            torch._foreach_copy_(self.then, self.now)

    def restore(self) -> None:
        """The step has failed before the optimiser's turn."""
        restore_random_state(self.random, self.generator)
        if self.now:
            torch._foreach_copy_(self.now, self.then)


class Stopped(KeyboardInterrupt):
    """Training was asked to stop, and has written a checkpoint; the message says where."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number  # of the signal


class StopRequest:
    """Notes Ctrl-C and SIGTERM until the step is done; a second Ctrl-C stops at once."""

    number = 0  # of the signal; 0: none came

    def __init__(self, enabled: bool) -> None:
        # Python lets only the main thread handle signals.
        self.enabled = enabled and threading.current_thread() is threading.main_thread()
        self.usual: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if self.enabled:
            self.usual = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.usual.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def stopped(self, done: int, steps: int, path: Path | None) -> Stopped:
        """What to raise once the checkpoint is written."""
        number = signal.Signals(self.number or signal.SIGTERM)  # another process may have got it
        return Stopped(
            f"stopped by {number.name} after step {done} of {steps}; checkpoint: {path}; the same "
            "command goes on from there.",
            number,
        )
