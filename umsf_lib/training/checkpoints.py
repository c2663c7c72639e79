"""Checkpoints: a resumed training gives the same result as an uninterrupted one.

A checkpoint holds everything that the next steps depend on: weights, queues, optimiser, log, and
the state of all random number generators. The learning-rate schedule depends only on the step, and
bfloat16 needs no loss scaler, so neither has a state to save.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from ..config import CheckpointError
from ..run import differences, sha256_of, write_atomically


def pack(content: Mapping[str, Any]) -> memoryview:
    """Serialise in memory: ``torch.save`` would write the name of a file into its content."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors to a file, atomically; equal states give identical files."""
    write_atomically(path, lambda temporary: temporary.write_bytes(pack(state)))


@dataclass
class Checkpoints:
    """Checkpoints of one training: files ``step-NNNNNN-<sha256 prefix>.pt``, the last two kept.

    The hash in the name detects damaged files, which ``torch.load`` would accept. As the name
    contains it, content and hash are written in one atomic rename.

    Attributes:
        folder: where the checkpoints are.
        settings: settings of the training; a checkpoint with other settings is refused.
        every: number of steps between checkpoints.
        code: digest of the code that trains (``run.code_digest``); that of the loaded checkpoint
            once a training goes on from older code.
        stale: what to do with a checkpoint of other code, see ``Config.stale``.
    """

    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    every: int = 100
    code: str = ""
    stale: str = "say"

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after ``step`` steps and delete all but the last two checkpoints."""
        made = {"step": step, "settings": dict(self.settings), "code": self.code}
        content = pack(made | dict(state))
        sha = hashlib.sha256(content).hexdigest()[:12]
        path = self.folder / f"step-{step:06d}-{sha}.pt"
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
        for old in self.paths()[:-2]:
            old.unlink()
        return path

    def paths(self) -> list[Path]:
        """Return the checkpoint files, oldest first."""
        return sorted(self.folder.glob("step-*.pt"), key=lambda path: int(path.stem.split("-")[1]))

    def load_latest(self) -> dict[str, Any] | None:
        """Load the newest undamaged checkpoint, or None; warn about damaged and older ones.

        Raises:
            CheckpointError: it was made with other settings; the message lists the differences.
        """
        for half in self.folder.glob(".tmp-*.pt"):  # left by a process killed while writing
            half.unlink(missing_ok=True)
        for path in reversed(self.paths()):
            if path.stem.rpartition("-")[2] == sha256_of(path)[:12]:
                content = load_checkpoint(path, self.settings)
                older, self.code = content["code"] != self.code, content["code"]
                if older and self.stale == "say":
                    warnings.warn(
                        f"{path} was made by older code, and training goes on from it; --fresh "
                        "(stale=fresh) starts again, --keep-stale (stale=keep) silences this.",
                        stacklevel=2,
                    )
                return content
            warnings.warn(
                f"{path} is damaged: its content does not have the SHA-256 in its name; "
                "training goes on from the one before it, or from the start.",
                stacklevel=2,
            )
        return None

    def delete_others(self) -> None:
        """Delete all checkpoints unless the newest has the same code and settings."""
        for path in reversed(self.paths()):
            try:
                if load_checkpoint(path, self.settings)["code"] == self.code:
                    return
            except CheckpointError:
                continue  # damaged, or of other settings
        for path in self.paths():
            path.unlink()


def load_checkpoint(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint to the CPU and compare its settings with the given ones.

    Raises:
        CheckpointError: it cannot be read or was made with other settings.
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
            "choose another run name, or train again with --fresh (stale=fresh)."
        )
    return content


def load_weights(module: nn.Module, weights: Mapping[str, Any], path: Path) -> None:
    """Load the weights of a checkpoint into a module.

    Raises:
        CheckpointError: the weights belong to another version of the network.
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
    """Return the state of ``generator`` and of torch, CUDA, NumPy and Python, as plain data."""
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
    """Restore what ``random_state`` returned."""
    generator.set_state(state["generator"])
    torch.set_rng_state(state["torch"])
    kind, key, *rest = state["numpy"]
    np.random.set_state((kind, key.numpy().astype(np.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def delayed_signals(enabled: bool) -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in a list, until the step is done; a second Ctrl-C stops at once.

    One that came too late for a step, during the last checkpoint, takes effect at the end. Nothing
    is collected outside the main thread, the only one that Python lets handle signals.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    usual: dict[int, Any] = {}
    if enabled and threading.current_thread() is threading.main_thread():
        usual = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])
