"""The training loop: resumed equals unbroken bit for bit; damage, mismatch and nan are caught."""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from umsf_lib.config import CheckpointError, ConfigError, Stopped
from umsf_lib.run import sha256_of
from umsf_lib.training.checkpoints import (
    Checkpoints,
    load_checkpoint,
    load_weights,
    random_state,
    restore_random_state,
)
from umsf_lib.training.distributed import ProcessLostError
from umsf_lib.training.loop import Row, cosine_with_warmup, print_progress, train, trainable

STEPS, EVERY = 20, 4


class Learner(nn.Module):
    """Tiny, but with all that a checkpoint must carry: dropout, batch norm, an EMA copy, a queue.

    Its loss draws from every source of random numbers there is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)
        )
        self.average = nn.Linear(8, 2).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(6, 2))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))


def killed() -> None:
    """What the loop knows nothing of, as of a process that is killed."""
    raise KeyboardInterrupt


def losses(learner: Learner, generator: torch.Generator, stop: int | None, end: Any) -> Any:
    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        x = torch.randn(3, 4, generator=generator) + random.random() + np.random.rand()
        y = learner.layers(x)
        if step == stop:
            end()  # in the middle of a step: statistics and random states have moved on
        teacher = learner.average(learner.layers[0](x).detach())
        loss = (y - teacher).square().mean() + (y - learner.queue.mean(0)).abs().mean()
        return loss, {"spread": y.std(), "step_again": float(step)}

    return loss_of


def run(
    folder: Path | None,
    *,
    stop: int | None = None,
    end: Callable[[], Any] = killed,
    every: int = EVERY,
    **change: Any,
) -> tuple[Learner, Any, Any]:
    """Train from the newest checkpoint, if any, as a newly started process would."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    learner, generator = Learner(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(trainable(learner.parameters()), lr=0.1, momentum=0.9)

    def after_step(step: int) -> None:
        last = learner.layers[-1]
        for old, new in zip(learner.average.parameters(), last.parameters(), strict=True):
            old.lerp_(new.detach(), 0.1)
        learner.queue[learner.pointer % 6] = last.bias.detach()
        learner.pointer += 1

    schedule = partial(cosine_with_warmup, warmup=3)
    settings: dict[str, Any] = {"steps": STEPS, "schedule": schedule, "log_every": 3}
    rows = train(
        learner,
        losses(learner, generator, stop, end),
        optimizer,
        generator=generator,
        batch=("some.batch", 3),
        after_step=after_step,
        checkpoints=Checkpoints(folder, {"lr": 0.1}, every) if folder else None,
        **settings | change,
    )
    return learner, optimizer, rows


def same(one: Any, other: Any) -> bool:
    """Bit for bit, through nested dicts and lists."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def assert_same(found: tuple[Learner, Any, list[Row]], expected: Any) -> None:
    assert same(found[0].state_dict(), expected[0].state_dict())
    assert same(found[1].state_dict(), expected[1].state_dict())
    assert found[2] == expected[2]


@pytest.fixture(scope="module")
def unbroken() -> tuple[Learner, Any, list[Row]]:
    return run(None)


def test_checkpoints_do_not_change_the_training(tmp_path: Path, unbroken) -> None:
    assert_same(run(tmp_path), unbroken)


# The last is stopped in every step in turn, and so resumes from every boundary.
@pytest.mark.parametrize(
    ("stops", "every"), [([1], 4), ([7], 4), ([8], 4), ([6, 7, 13], 2), (list(range(STEPS)), 1)]
)
def test_a_resumed_training_ends_where_an_unbroken_one_does(
    tmp_path: Path, unbroken, stops, every
) -> None:
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, stop=stop, every=every)
    assert_same(run(tmp_path, every=every), unbroken)


def test_every_source_of_random_numbers_goes_on(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    random.gauss(0, 1), np.random.randn()  # each keeps the second of a pair for the next call

    def draws() -> list[float]:
        own = [torch.rand((), generator=generator).item(), torch.rand(()).item()]
        return own + [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand()]

    Checkpoints(tmp_path).save(1, {"random": random_state(generator)})
    expected = draws()
    state = Checkpoints(tmp_path).load_latest()
    assert state is not None and draws() != expected
    restore_random_state(state["random"], generator)
    assert draws() == expected


def test_a_finished_training_is_only_read_back(tmp_path: Path, unbroken) -> None:
    run(tmp_path)
    assert_same(run(tmp_path, stop=STEPS - 1), unbroken)  # no step is taken


def test_the_last_two_checkpoints_are_kept_under_their_hash(tmp_path: Path) -> None:
    run(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[:12] for name in names] == ["step-000016-", "step-000020-"]
    for name in names:
        assert name == f"{name[:12]}{sha256_of(tmp_path / name)[:12]}.pt"


def flip(path: Path, position: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
def test_with_a_flipped_bit_the_older_checkpoint_is_used(tmp_path, unbroken, position) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=14)
    checkpoints = Checkpoints(tmp_path, {"lr": 0.1})
    flip(checkpoints.paths()[-1], position)
    with pytest.warns(UserWarning, match="step-000012-.* is damaged.*goes on from the one before"):
        state = checkpoints.load_latest()
    assert state is not None and state["step"] == 8
    with pytest.warns(UserWarning, match="is damaged"):
        assert_same(run(tmp_path), unbroken)


def test_half_written_and_foreign_files_are_passed_over(tmp_path: Path, unbroken) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=14)
    newest = Checkpoints(tmp_path).paths()[-1]
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    (tmp_path / ".tmp-abc.pt").write_bytes(b"half")
    with pytest.warns(UserWarning, match="is damaged"):
        assert_same(run(tmp_path), unbroken)
    assert not list(tmp_path.glob(".tmp-*"))


def test_without_a_whole_checkpoint_training_begins_anew(tmp_path: Path, unbroken) -> None:
    assert Checkpoints(tmp_path / "none").load_latest() is None
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=9)
    for path in Checkpoints(tmp_path).paths():
        flip(path, 0.5)
    with pytest.warns(UserWarning, match="step-000004-.* is damaged"):
        assert_same(run(tmp_path), unbroken)


def test_the_newest_is_the_one_with_the_highest_step(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        checkpoints.save(step, {})
    state = checkpoints.load_latest()
    assert state is not None and state["step"] == 1_000_001
    assert [path.name.split("-")[1] for path in checkpoints.paths()] == ["1000000", "1000001"]


def test_other_settings_are_refused_and_listed(tmp_path: Path) -> None:
    old = {"lr": 0.1, "model": {"channels": 8}, "sigmas": (1.0, 2.0), "gone": 1}
    path = Checkpoints(tmp_path, old).save(3, {"x": torch.ones(2)})
    assert load_checkpoint(path, dict(old))["step"] == 3
    new = {"lr": 0.2, "model": {"channels": 16}, "sigmas": (1.0, 2.0), "added": True}
    with pytest.raises(CheckpointError) as caught:
        Checkpoints(tmp_path, new).load_latest()
    message = str(caught.value)
    for part in (
        str(path),
        "lr 0.1 -> 0.2",
        "model.channels 8 -> 16",
        "gone 1 -> None",
        "added None -> True",
        "another run name",
    ):
        assert part in message
    assert "sigmas" not in message


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for write in (
        lambda: path.write_bytes(b"not a checkpoint"),
        lambda: torch.save({"weights": torch.ones(1)}, path),
        lambda: torch.save([1], path),
        lambda: path.unlink(),
    ):
        write()
        with pytest.raises(CheckpointError, match="x.pt is not a readable checkpoint"):
            load_checkpoint(path, {})


# What ends a training early


def constant(learner: Learner, value: float) -> Any:
    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        return learner.layers[-1].bias.sum() * 0 + (value if step >= 5 else 1.0), {}

    return loss_of


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_training_and_is_not_saved(tmp_path, value) -> None:
    learner = Learner()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    with pytest.raises(ConfigError) as caught:
        train(
            learner,
            constant(learner, value),
            optimizer,
            steps=20,
            generator=torch.Generator(),
            batch=("some.batch", 3),
            checkpoints=Checkpoints(tmp_path, every=4),
        )
    (kept,) = Checkpoints(tmp_path).paths()
    assert kept.name.startswith("step-000004")
    said = str(caught.value)
    for part in (f"loss is {value} at step 6;", f"last good checkpoint: {kept}", "learning rate"):
        assert part in said


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    def spoil() -> None:
        learner.queue[0] = math.nan

    learner = Learner()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="not finite after step 4; there is no checkpoint"):
        train(
            learner,
            constant(learner, 1.0),
            optimizer,
            steps=20,
            generator=torch.Generator(),
            batch=("some.batch", 3),
            after_step=lambda step: spoil() if step == 3 else None,
            checkpoints=Checkpoints(tmp_path, every=4),
        )


def gpu_full() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def cpu_full() -> None:
    torch.empty(10**16)


@pytest.mark.parametrize("full", [gpu_full, cpu_full])
def test_full_memory_says_what_would_fit_and_where_to_go_on(tmp_path, unbroken, full) -> None:
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, stop=6, end=full)
    newest = Checkpoints(tmp_path).paths()[-1]
    assert newest.name.startswith("step-000004")
    assert str(caught.value) == (
        "memory is full with some.batch 3; about half should fit: override some.batch=1 "
        f"(in step 7); last good checkpoint: {newest}."
    )
    assert_same(run(tmp_path), unbroken)


def test_full_memory_after_the_weights_have_moved_names_it_too(tmp_path, unbroken) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConfigError) as caught:
        original, calls = torch.optim.SGD.step, []

        def step(optimizer: Any) -> None:
            original(optimizer)
            calls.append(1)
            if len(calls) == 7:
                gpu_full()

        patch.setattr(torch.optim.SGD, "step", step)
        run(tmp_path)
    (kept,) = Checkpoints(tmp_path).paths()
    assert "step-000004" in kept.name and f"last good checkpoint: {kept}" in str(caught.value)
    assert_same(run(tmp_path), unbroken)


@pytest.mark.parametrize("where", ["any_process", "mean_over_processes"])
def test_a_lost_process_is_said_with_the_newest_checkpoint(tmp_path, unbroken, where) -> None:
    calls: list[int] = []

    def lost(value: Any) -> Any:
        calls.append(1)
        if len(calls) == (7 if where == "any_process" else 2):  # each step; each third one
            raise ProcessLostError("another process has died")
        return value

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ProcessLostError) as caught:
        patch.setattr(f"umsf_lib.training.loop.{where}", lost)
        run(tmp_path)
    newest = Checkpoints(tmp_path).paths()[-1]
    assert newest.name.startswith("step-000004")
    step = 7 if where == "any_process" else 6
    said = f"another process has died (in step {step}); last good checkpoint: {newest}."
    assert str(caught.value) == said
    assert_same(run(tmp_path), unbroken)


def test_weights_of_another_network_are_refused_in_one_sentence() -> None:
    weights = nn.Conv2d(4, 2, 1).state_dict()
    with pytest.raises(CheckpointError, match="some.pt holds weights of another version.*size"):
        load_weights(nn.Linear(4, 2), weights, Path("some.pt"))


def test_a_full_memory_without_checkpoints_or_with_one_window() -> None:
    learner = Learner()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="some.batch 1; choose smaller windows.*no checkpoint"):
        train(
            learner,
            lambda step: gpu_full(),
            optimizer,
            steps=1,
            generator=torch.Generator(),
            batch=("some.batch", 1),
        )


def test_an_error_in_the_step_itself_passes_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"):
        run(tmp_path, stop=6, end=lambda: torch.ones(2).view(3))
    assert [path.name[:11] for path in Checkpoints(tmp_path).paths()] == ["step-000004"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_training_after_its_step(tmp_path, unbroken, number) -> None:
    usual = signal.getsignal(number)
    with pytest.raises(Stopped) as caught:
        run(tmp_path, stop=6, end=lambda: os.kill(os.getpid(), number))
    newest = Checkpoints(tmp_path).paths()[-1]
    assert newest.name.startswith("step-000007")
    assert f"stopped by {number.name} after step 7 of 20; checkpoint: {newest}" in str(caught.value)
    assert caught.value.number == number and signal.getsignal(number) == usual
    assert_same(run(tmp_path), unbroken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_last_checkpoint_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: list[Row], number: int
) -> None:
    def save(self: Checkpoints, step: int, state: dict[str, Any]) -> Path:
        path = usual(self, step, state)
        if step == STEPS:
            os.kill(os.getpid(), number)
        return path

    def stop(number: int, frame: Any) -> None:
        raise Stopped("stopped", number)

    usual, before = Checkpoints.save, signal.signal(number, stop)
    monkeypatch.setattr(Checkpoints, "save", save)
    try:
        with pytest.raises(Stopped) as caught:
            run(tmp_path)
    finally:
        signal.signal(number, before)
    assert caught.value.number == number
    monkeypatch.undo()
    told: list[int] = []
    assert_same(run(tmp_path, progress=lambda step, *_: told.append(step)), unbroken)
    assert told == []  # the last checkpoint was the end already


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        run(tmp_path, stop=6, end=twice)
    assert not isinstance(caught.value, Stopped)
    assert [path.name[:11] for path in Checkpoints(tmp_path).paths()] == ["step-000004"]


def test_without_checkpoints_or_main_thread_signals_are_left_alone(tmp_path, unbroken) -> None:
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job may start without it
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            run(None, stop=6, end=lambda: os.kill(os.getpid(), signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, usual)
    assert not isinstance(caught.value, Stopped)
    ends: list[Any] = []
    thread = threading.Thread(target=lambda: ends.append(run(tmp_path)))
    thread.start()
    thread.join()
    assert_same(ends[0], unbroken)


# Schedule and log


def test_the_schedule_is_a_ramp_and_half_a_cosine() -> None:
    steps, warmup = 50, 10
    factors = [cosine_with_warmup(step, steps, warmup) for step in range(steps)]
    assert factors[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    for step in range(10, 50):
        # 1 - sin^2 of half the angle is the same half cosine
        angle = 0.5 * math.pi * (step - 10) / 40
        assert factors[step] == pytest.approx(1 - math.sin(angle) ** 2)
    assert factors[10] == 1 and factors[30] == pytest.approx(0.5) and 0 < factors[-1] < 0.01
    assert cosine_with_warmup(0, 5, 0) == 1 and cosine_with_warmup(5, 5, 0) == pytest.approx(0)
    assert [cosine_with_warmup(s, 3, 3) for s in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_rows_have_what_was_logged_at_its_step(unbroken) -> None:
    _, _, rows = unbroken
    assert [row["step"] for row in rows] == [3, 6, 9, 12, 15, 18, 20]
    for row in rows:
        assert set(row) == {"step", "loss", "lr", "spread", "step_again"}
        step = int(row["step"]) - 1
        assert row["step_again"] == step
        assert row["lr"] == pytest.approx(0.1 * cosine_with_warmup(step, STEPS, 3))
        assert all(type(value) is float for value in row.values())


def test_each_group_has_its_own_peak() -> None:
    learner = Learner()
    groups = [
        {"params": learner.layers[0].parameters(), "lr": 1.0},
        {"params": learner.layers[-1].parameters(), "lr": 0.01},
    ]
    optimizer = torch.optim.SGD(groups)
    seen = []

    def after_step(step: int) -> None:
        seen.append([group["lr"] for group in optimizer.param_groups])

    train(
        learner,
        constant(learner, 1.0),
        optimizer,
        steps=8,
        generator=torch.Generator(),
        batch=("some.batch", 3),
        after_step=after_step,
    )
    factors = [cosine_with_warmup(step, 8, 0) for step in range(8)]
    assert seen == [[pytest.approx(f), pytest.approx(0.01 * f)] for f in factors]


def test_one_plain_step_is_that_of_the_optimizer() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 1, bias=False)
    x, before = torch.randn(5, 3), layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    source, batch = torch.Generator(), ("some.batch", 5)
    train(layer, lambda _: (layer(x).mean(), {}), optimizer, steps=1, generator=source, batch=batch)
    assert torch.allclose(layer.weight, before - 0.1 * x.mean(0), atol=1e-6)


def test_progress_is_told_each_step_and_printed_seldom(capsys: pytest.CaptureFixture) -> None:
    told = []
    run(None, progress=lambda step, steps, row: told.append((step, steps, row.get("step"))))
    assert told[0] == (0, 20, None) and told[3] == (3, 20, 3)  # no row before step 3
    assert told[-1] == (20, 20, 20) and len(told) == 21
    assert capsys.readouterr().out == ""
    run(None, progress=print_progress("pretrain", every_s=1000))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pretrain 0/20" and len(lines) == 2
    assert lines[1].startswith("pretrain 20/20  loss ") and "0 s left" in lines[1]


def test_a_person_who_watches_sees_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("UMSF_HEADLESS", raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    progress = print_progress("scan", every_s=0)
    for _ in range(2):  # trainings one after the other
        run(None, progress=progress)
    seen = capsys.readouterr()
    assert seen.out == "" and seen.err.count("scan: 100%") == 2 and "loss=" in seen.err
    monkeypatch.setenv("UMSF_HEADLESS", "1")  # a notebook in a batch run
    run(None, progress=print_progress("scan"))
    seen = capsys.readouterr()
    assert seen.out.startswith("scan 0/20\nscan 20/20") and seen.err == ""
