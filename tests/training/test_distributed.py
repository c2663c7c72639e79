"""Several processes train as one does; if one dies, the last checkpoint is left."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from umsf_lib.__main__ import main
from umsf_lib.config import ConfigError
from umsf_lib.models.speckle import Share, draw, draw_uniform
from umsf_lib.pretraining.moco import MomentumContrast
from umsf_lib.pretraining.stage import pretrain
from umsf_lib.run import Run
from umsf_lib.training import distributed
from umsf_lib.training.checkpoints import Checkpoints

from ..pretraining.test_pretrain import ready
from .test_training import same

# At the usual rate .03 rounding decides whether one activation is above 0 (ReLU).
OVERRIDES = "model.norm=group pretrain.lr=0.029 pretrain.checkpoint_every=5 device=cpu"
DONE = 5  # steps, of 8, before one process dies; as many as between checkpoints


def worker(folder: Path, arguments: list[str]) -> int:
    """``python -m umsf_lib``, but it writes down each step's state, and the second process dies."""
    enqueue, forward, done = MomentumContrast.enqueue, MomentumContrast.forward, []

    def noted(moco: MomentumContrast, *given: Any) -> None:
        enqueue(moco, *given)
        done.append(1)
        state = b"".join(value.numpy().tobytes() for value in moco.state_dict().values())
        path = folder / f"{distributed.rank()}-{len(done)}"
        path.write_text(hashlib.sha256(state).hexdigest())

    def dying(moco: MomentumContrast, *given: Any) -> Any:
        if distributed.rank() == 1 and len(done) == DONE:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(moco, *given)

    MomentumContrast.enqueue, MomentumContrast.forward = noted, dying  # type: ignore[method-assign]
    return main(arguments)


def newest(run: Run) -> dict[str, Any]:
    return torch.load(Checkpoints(run.path("checkpoints")).paths()[-1], weights_only=True)


def close(one: Any, other: Any, tolerance: float) -> bool:
    """Equal up to rounding, through nested dicts and lists."""
    if isinstance(one, Tensor) and one.is_floating_point():
        return torch.allclose(one, other, rtol=0, atol=tolerance)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[k], other[k], tolerance) for k in one)
    return same(one, other)


def stop_after(done: int) -> Any:
    """`forward` as it is, but memory is full in the step after the checkpoint."""
    forward, calls = MomentumContrast.forward, []

    def full(moco: MomentumContrast, *given: Any) -> Any:
        calls.append(1)
        if len(calls) > done:
            raise torch.cuda.OutOfMemoryError
        return forward(moco, *given)

    return full


def test_two_processes_train_as_one_and_one_goes_on_when_the_other_dies(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, _ = ready("two", OVERRIDES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "--", __name__, str(tmp_path), "pretrain", "--profile", "tiny"]
    command += ["--run", "two", "--overrides", OVERRIDES]
    root = Path(__file__).parents[2]
    launched = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)
    one, scenes = ready("one", OVERRIDES)
    with monkeypatch.context() as patch, pytest.raises(ConfigError):
        patch.setattr(MomentumContrast, "forward", stop_after(DONE))
        pretrain(one, scenes)
    _, said = launched.communicate(timeout=240)
    path = Checkpoints(two.path("checkpoints")).paths()[-1]
    assert launched.returncode != 0
    assert "umsf: another process of this training has died (in step 6); " in said
    assert f"last good checkpoint: {path}.\n" in said
    # Weights, key network and queues of both processes are the same, bit for bit, at every step;
    states = {p.name: p.read_text() for p in tmp_path.glob("[01]-*")}
    assert len(states) == 2 * DONE
    assert all(states[f"0-{step}"] == states[f"1-{step}"] for step in range(1, DONE + 1))
    # those of one process up to rounding; the random numbers and the queues' ground exactly.
    alone, shared = newest(one), newest(two)
    assert alone["step"] == shared["step"] == DONE
    assert close(shared["module"], alone["module"], 1e-5)
    assert close(shared["optimizer"]["state"], alone["optimizer"]["state"], 1e-4)
    assert same(shared["random"], alone["random"])
    # One process goes on where two were stopped, to the same end.
    assert pretrain(two, scenes) and pretrain(one, scenes)
    assert newest(two)["step"] == 8
    assert close(newest(two)["module"], newest(one)["module"], 1e-4)


def test_processes_keep_their_rows_of_one_draw() -> None:
    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    cpu = torch.device("cpu")
    for function in (draw, draw_uniform):
        whole = function((6, 3, 2), seeded(), cpu)
        parts = [function((2, 3, 2), Share(seeded(), rank, 3), cpu) for rank in range(3)]
        assert torch.equal(torch.cat(parts), whole)
    generators = [seeded() for _ in range(2)]
    draw((6, 1), generators[0], cpu)
    draw((2, 1), Share(generators[1], 1, 3), cpu)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_alone_everything_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.processes(), distributed.first_process_first():
        rows = torch.rand(3, 2)
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert distributed.own_rows(7) == slice(0, 7)
        assert distributed.any_process(True) and not distributed.any_process(False)
        assert distributed.mean_over_processes([1.0, 2.0]) == [1.0, 2.0]
        assert distributed.gather_rows(rows, [3]) is rows


def test_a_batch_that_cannot_be_shared(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(ConfigError, match="batch of 4 cannot be shared by 3 .* multiple of 3"):
        distributed.own_rows(4)


def test_batch_norm_over_processes_without_a_gpu(project: Path, monkeypatch) -> None:
    run, scenes = ready("mine")
    monkeypatch.setattr("umsf_lib.pretraining.stage.world_size", lambda: 2)
    with pytest.raises(ConfigError, match="2 processes without a GPU.*model.norm=group"):
        pretrain(run, scenes)


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    said = "4 processes .* has 2 GPUs; set --nproc_per_node=2"
    with pytest.raises(ConfigError, match=said), distributed.processes():
        pass


if __name__ == "__main__":
    sys.exit(worker(Path(sys.argv[1]), sys.argv[2:]))
