"""Pretraining: where positives lie, what the loss is, what resumes."""

from __future__ import annotations

import copy
import math
import random
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor

from umsf_lib import figures
from umsf_lib.__main__ import main
from umsf_lib.config import (
    CheckpointError,
    Config,
    ConfigError,
    DataError,
    MissingStageError,
    Stopped,
    ViewConfig,
    load_config,
)
from umsf_lib.data.layout import load_layout
from umsf_lib.data.scene_set import SceneSet, normalisation
from umsf_lib.data.stage import load_data
from umsf_lib.data.windows import PixelStore
from umsf_lib.models.stage import train_despeckler
from umsf_lib.pretraining.augmentations import sample_tokens
from umsf_lib.pretraining.batches import as_arrays
from umsf_lib.pretraining.losses import collapsed, embedding_statistics
from umsf_lib.pretraining.moco import MomentumContrast, embeddings, unit
from umsf_lib.pretraining.stage import (
    WindowSource,
    build_learner,
    load_pretrained,
    new_network,
    new_optimizer,
    pretrain,
    pretraining_inputs,
    queue_size,
    steps_per_epoch,
)
from umsf_lib.run import Run
from umsf_lib.training.checkpoints import Checkpoints

from ..fakes import bands, write_fake
from ..training.test_training import same

PLAIN = ViewConfig(window_px=32, overlap_px=16, gain=0, offset=0, blur=0, speckle_looks=0)


class ScenePlane(PixelStore):
    """Windows whose two optical bands are the row and the column of each pixel's centre."""

    def windows(self, scene: Tensor, row: Tensor, col: Tensor, size: Any) -> dict[str, Tensor]:
        line = torch.arange(size) + 0.5
        rows = (row[:, None, None] + line[None, :, None]).expand(-1, size, size)
        cols = (col[:, None, None] + line[None, None, :]).expand(-1, size, size)
        return {"optical": torch.stack([rows, cols], 1)}


@pytest.fixture
def learner(project: Path) -> tuple[MomentumContrast, WindowSource, Config]:
    run = Run.open(load_config("tiny"))
    scenes = load_data(run)
    train_despeckler(run, scenes)
    return (*build_learner(run, scenes, torch.Generator().manual_seed(0)), run.config)


def test_dense_positives_lie_on_the_same_ground(whu: SceneSet, whu_store: PixelStore) -> None:
    store = object.__new__(ScenePlane)
    store.__dict__ |= whu_store.__dict__ | {"roles": ("optical",)}
    source = WindowSource(whu, store, replace(load_config("tiny"), views=PLAIN))
    batch = source.draw(64, torch.Generator().manual_seed(3))
    assert 0.3 < batch.visible.float().mean() < 1
    # A border of half a pixel is mirrored, so look at points that are further inside.
    inside = (
        batch.visible & (batch.points_a.abs() < 0.9).all(2) & (batch.points_b.abs() < 0.9).all(2)
    )
    places = [
        sample_tokens(view.images["optical"], points)[inside]  # (M, 2) row, col
        for view, points in ((batch.first, batch.points_a), (batch.second, batch.points_b))
    ]
    assert torch.allclose(*places, atol=1e-2) and places[0].std(0).min() > 5


def test_a_key_depends_on_its_own_window_only(learner: Any) -> None:
    moco, source, _ = learner
    assert moco.query.training and not any(m.training for m in moco.key.modules())
    batch = source.draw(3, torch.Generator().manual_seed(1))
    together = moco.key.features(batch.second.images)["fused"]
    alone = {role: images[:1] for role, images in batch.second.images.items()}
    assert torch.allclose(moco.key.features(alone)["fused"], together[:1], atol=1e-5)
    moco.eval().train()
    assert moco.query.training and not any(m.training for m in moco.key.modules())


def test_a_batch_can_be_looked_at(learner: Any) -> None:
    batch = learner[1].draw(2, torch.Generator().manual_seed(0))
    views, points = as_arrays(batch)
    assert [set(view) for view in views] == [{"optical", "sar"}] * 2
    figures.views_figure(views, points, (2, 1, 0))
    assert [len(places) for places in points[0]] == batch.visible.sum(1).tolist()


def test_the_loss_equals_a_slow_loop(learner: Any) -> None:
    moco, source, config = learner
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):  # the second loss sees queues with keys of real ground
        batch = source.draw(4, generator)
        loss, extra = moco(batch)
        moco.enqueue(batch, extra["enqueue"])
    batch = source.draw(4, generator)
    loss, extra = moco(batch)
    pairs = {
        "intra_optical": ("optical", "optical"),
        "intra_sar": ("sar", "sar"),
        "cross_optical": ("cross_optical", "cross_sar"),
        "cross_sar": ("cross_sar", "cross_optical"),
        "fused": ("fused", "fused"),
    }
    weight = {"intra": 0.5, "cross": 0.5, "fused": 1.0}  # weights 1, shared by both of a kind
    total = 0.0
    with torch.no_grad():
        query, key = (
            unit(embeddings(net, batch, i)) for i, net in enumerate((moco.query, moco.key))
        )
    windows = batch.visible.nonzero()[:, 0].tolist(), range(4)  # of tokens, of pooled rows
    for name, (mine, other) in pairs.items():
        queue, part = moco.queues[other], 0.0
        for kind in (0, 1):
            one = 0.0
            for i, q, k in zip(windows[kind], query[mine][kind], key[other][kind], strict=True):
                below = math.exp(float(q @ k) / config.pretrain.tau)
                positive = below
                row, col = batch.centre[i]
                for j in range(len(queue.entries)):
                    near = max(abs(row - queue.row[j]), abs(col - queue.col[j])) < 32
                    if not (near and batch.scene[i] == queue.scene[j]):
                        below += math.exp(float(q @ queue.entries[j]) / config.pretrain.tau)
                one -= math.log(positive / below)
            part += 0.5 * one / len(query[mine][kind])
        assert extra["parts"][name].item() == pytest.approx(part, rel=1e-4)
        total += weight[name.split("_")[0]] * part
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_gradients_reach_the_query_alone(learner: Any) -> None:
    moco, source, _ = learner
    batch = source.draw(4, torch.Generator().manual_seed(0))
    loss, extra = moco(batch)
    loss.backward()
    lacking = [n for n, p in moco.query.named_parameters() if p.grad is None]
    # The last layer of the untrained residual is zero only in a fresh front end; this one learned.
    assert lacking == []
    assert all(p.grad is None and not p.requires_grad for p in moco.key.parameters())
    before = {name: queue.entries.clone() for name, queue in moco.queues.items()}
    moco.enqueue(batch, extra["enqueue"])
    count = int(batch.visible.sum()) + len(batch.scene)
    for name, queue in moco.queues.items():
        changed = (queue.entries != before[name]).any(1)
        assert int(changed.sum()) == min(count, len(queue.entries))
        newest = queue.entries[(queue.pointer - 1) % len(queue.entries)]
        assert torch.equal(newest, extra["key"][name][1][-1])


def test_keys_are_unit_vectors_of_the_key_network(learner: Any) -> None:
    moco, source, _ = learner
    batch = source.draw(3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = moco.key.features(batch.second.images)
        means = {name: tokens.mean(dim=(2, 3)) for name, tokens in maps.items()}
        expected = F.normalize(moco.key.project(means)["cross_sar"], dim=1)
    _, extra = moco(batch)
    assert torch.allclose(extra["key"]["cross_sar"][1], expected, atol=1e-6)
    assert not extra["key"]["cross_sar"][0].requires_grad


def test_tokens_are_read_at_their_places_and_then_projected(learner: Any) -> None:
    moco, source, _ = learner
    batch = source.draw(3, torch.Generator().manual_seed(0))
    corner = 1 - moco.key.stride / 32  # the middle of the last token
    points = torch.tensor([[-corner, -corner], [corner, corner]]).repeat(3, 1, 1)
    visible = torch.tensor([[True, False], [False, True], [True, True]])
    with torch.no_grad():
        there = replace(batch, points_b=points, visible=visible)
        tokens, _ = embeddings(moco.key, there, 1)["cross_sar"]
        sar = moco.key.features(batch.second.images)["sar"]
        read = torch.stack([sar[0, :, 0, 0], sar[1, :, -1, -1], sar[2, :, 0, 0], sar[2, :, -1, -1]])
        expected = moco.key.projectors["cross_sar"](read)
    assert torch.allclose(tokens, expected, atol=1e-5)


def ready(name: str, overrides: str = "") -> tuple[Run, SceneSet]:
    """A run of which only pretraining is left."""
    run = Run.open(load_config("tiny", overrides=overrides), name)
    scenes = load_data(run)
    train_despeckler(run, scenes)
    return run, scenes


def result(run: Run) -> dict[str, Any]:
    """All that the last checkpoint holds, and the log."""
    newest = Checkpoints(run.path("checkpoints")).paths()[-1]
    log = run.path("pretrain.csv").read_bytes()
    return torch.load(newest, weights_only=True) | {"log": log}


def interrupt_in_call(number: int) -> Any:
    """`enqueue` as it is, but the process ends in the n-th call: after the optimiser's turn."""
    original, calls = MomentumContrast.enqueue, []

    def enqueue(moco: MomentumContrast, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        original(moco, *arguments)

    return enqueue


def test_pretraining_resumed_from_every_boundary_ends_as_an_unbroken_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = "pretrain.checkpoint_every=1"
    run, scenes = ready("unbroken", overrides)
    assert pretrain(run, scenes) and not pretrain(run, scenes)
    broken, scenes = ready("broken", overrides)
    for done in range(8):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(MomentumContrast, "enqueue", interrupt_in_call(1 if done == 0 else 2))
            pretrain(broken, scenes)
        assert not broken.is_done("pretrain")
        assert len(Checkpoints(broken.path("checkpoints")).paths()) == min(done, 2)
    assert pretrain(broken, scenes)
    state = result(run)
    assert same(result(broken), state)
    assert state["step"] == 8 and any("pointer" in name for name in state["module"])
    assert pd.read_csv(run.path("pretrain.csv")).step.tolist() == [8]


CHILD = """
import sys
from umsf_lib.config import load_config
from umsf_lib.data.stage import load_data
from umsf_lib.pretraining.stage import pretrain
from umsf_lib.run import Run
run = Run.open(load_config("tiny", overrides=sys.argv[1]), "killed")
pretrain(run, load_data(run))
"""


def test_a_killed_process_goes_on_to_the_same_end(project: Path) -> None:
    overrides = "pretrain.epochs=6 pretrain.checkpoint_every=3"
    ready("killed", overrides)
    child = subprocess.Popen([sys.executable, "-c", CHILD, overrides])
    run, scenes = ready("unbroken", overrides)
    pretrain(run, scenes)  # meanwhile
    killed = Run.open(run.config, "killed")
    checkpoints, goal = Checkpoints(killed.path("checkpoints")), random.randrange(3, 19)
    while not any(int(path.name[5:11]) >= goal for path in checkpoints.paths()):
        assert child.poll() is None
        time.sleep(random.random() / 50)
    child.kill()
    assert child.wait() == -signal.SIGKILL and not killed.is_done("pretrain")
    assert pretrain(killed, scenes)
    assert same(result(killed), result(run))


# Bad input: one sentence each


def test_two_processes_in_one_run_folder(project: Path) -> None:
    run, scenes = ready("mine")
    with FileLock(run.path(".lock")), pytest.raises(DataError) as caught:
        pretrain(run, scenes)
    for part in (str(run.folder), "another process", "'pretrain'", "another run name"):
        assert part in str(caught.value)


def test_a_checkpoint_of_another_profile(project: Path) -> None:
    run, scenes = ready("mine")
    checkpoints = run.path("checkpoints")
    old = pretraining_inputs(run) | load_config("quick").section("model", "pretrain")
    path = Checkpoints(checkpoints, old).save(5, {})
    with pytest.raises(CheckpointError) as caught:
        pretrain(run, scenes)
    for part in (str(path), "model.channels 64 -> 16", "pretrain.batch 12 -> 4", "another run"):
        assert part in str(caught.value)
    assert "seed" not in str(caught.value)


def test_a_long_queue_is_capped_and_said(project: Path) -> None:
    run, scenes = ready("mine", "pretrain.queue_size=1000 pretrain.epochs=1")
    said = "pretrain.queue_size is 1000, but 32 training windows give 160 keys.*capped at.* 80"
    with pytest.warns(UserWarning, match=said):
        pretrain(run, scenes)


def test_the_learning_rate_is_linear_in_the_batch(project: Path) -> None:
    peaks = {}
    for batch in (4, 8):
        run, scenes = ready(f"of-{batch}", f"pretrain.batch={batch} pretrain.epochs=2")
        pretrain(run, scenes)
        peaks[batch] = pd.read_csv(run.path("pretrain.csv")).lr.iloc[0]
    assert peaks[8] == pytest.approx(2 * peaks[4])


def test_a_run_may_go_on_with_deterministic_kernels(project: Path) -> None:
    run, scenes = ready("mine", "deterministic=true")
    pretrain(run, scenes)
    assert torch.are_deterministic_algorithms_enabled()
    again = Run.open(load_config("tiny"), "mine")
    assert not pretrain(again, scenes)  # it has been done
    other, scenes = ready("other")
    pretrain(other, scenes)
    assert not torch.are_deterministic_algorithms_enabled()
    losses = [pd.read_csv(r.path("pretrain.csv")).loss.iloc[0] for r in (run, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_one_token_is_no_collapse() -> None:
    one = torch.ones(1, 4)
    logged = embedding_statistics(one, one, torch.ones(3, 4), torch.ones(1, 3) > 0)
    # With the keys of the other processes.
    assert set(logged) == {"std", "mean_cosine", "top1"} and np.isnan(list(logged.values())).all()
    assert collapsed(logged, 4) is None


@pytest.mark.parametrize(("epochs", "collapses"), [(3, True), (3, False), (2, True)])
def test_a_collapse_is_said_at_the_end(
    project: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, collapses: bool
) -> None:
    """By the twelfth look of the monitor; the eighth is too early to judge."""
    run, scenes = ready("mine", f"pretrain.epochs={epochs}")
    good, bad = {"std": 1.0, "mean_cosine": 0.0}, {"std": 0.0, "mean_cosine": 1.0}
    first, last = (good, bad) if collapses else (bad, good)
    looks = iter([first] * (epochs * 4 - 1) + [last])
    monkeypatch.setattr("umsf_lib.pretraining.stage.LOG_EVERY", 1)
    monkeypatch.setattr("umsf_lib.pretraining.stage.embedding_statistics", lambda *_: next(looks))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pretrain(run, scenes)
    found = [w for w in said if "embeddings have collapsed: std 0.0000" in str(w.message)]
    assert len(found) == (collapses and epochs == 3)


def test_a_batch_of_one(project: Path) -> None:
    run, scenes = ready("one", "pretrain.batch=1")
    with pytest.raises(ConfigError, match="pretrain.batch is 1, but batch norm.*model.norm=group"):
        pretrain(run, scenes)
    run, scenes = ready("group", "pretrain.batch=1 model.norm=group pretrain.epochs=3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pretrain(run, scenes)
    log = pd.read_csv(run.path("pretrain.csv"))
    assert log.step.tolist() == [10, 12] and log.loss.notna().all()


def test_no_valid_window(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, scenes = ready("mine")
    plane = SceneSet.plane
    monkeypatch.setattr(SceneSet, "plane", lambda s, role, i: plane(s, role, i) & (role != "valid"))
    with pytest.raises(DataError, match="no training window of 32 px .* has 50% valid ground"):
        pretrain(run, scenes)


def test_a_gpu_that_is_not_there(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device is cuda, but torch .* sees no CUDA GPU; check"):
        Run.open(load_config("tiny", overrides="device=cuda"), "mine")
    assert not (project / "runs").exists()
    run = Run.open(load_config("tiny", overrides="device=cpu"), "mine")
    assert run.device.type == "cpu"
    assert Run.open(load_config("tiny"), "mine").folder == run.folder  # it may go on elsewhere


def test_full_memory_names_the_batch(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, scenes = ready("mine", "pretrain.checkpoint_every=3")
    forward, calls = MomentumContrast.forward, []

    def full(moco: MomentumContrast, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return forward(moco, *arguments)

    with monkeypatch.context() as patch, pytest.raises(ConfigError) as caught:
        patch.setattr(MomentumContrast, "forward", full)
        pretrain(run, scenes)
    (path,) = Checkpoints(run.path("checkpoints")).paths()
    for part in ("override pretrain.batch=2", "in step 5", f"last good checkpoint: {path}"):
        assert part in str(caught.value)
    assert path.name.startswith("step-000003") and pretrain(run, scenes)  # from there


def test_the_command_ends_with_the_signals_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stop(*_: Any) -> None:
        raise Stopped("stopped by SIGTERM after step 3 of 8", signal.SIGTERM)

    monkeypatch.setattr("umsf_lib.__main__.Run.open", stop)
    assert main(["pretrain", "--profile", "tiny"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "umsf: stopped by SIGTERM after step 3 of 8\n"


def test_load_pretrained_gives_the_trained_query(tiny_run: Run, whu: SceneSet) -> None:
    scenes = load_data(tiny_run)
    trained, fresh = load_pretrained(tiny_run, scenes), new_network(tiny_run, scenes)
    path = Checkpoints(tiny_run.path("checkpoints"), {}).paths()[-1]
    saved = torch.load(path, weights_only=True)["module"]
    for name, value in trained.state_dict().items():
        assert torch.equal(value, saved[f"query.{name}"])
    moved = [n for n, p in trained.named_parameters() if not torch.equal(p, fresh.get_parameter(n))]
    assert len(moved) > len(list(trained.parameters())) / 2


def test_a_queue_holds_at_most_half_an_epoch() -> None:
    config = load_config("tiny")  # 4 tokens and 1 pooled key per window, 50 entries
    assert queue_size(config, 1000) == 50
    assert queue_size(config, 10) == 25
    assert queue_size(config, 0) == 1
    assert steps_per_epoch(config, 1000) == 4
    full = replace(config, pretrain=replace(config.pretrain, steps_per_epoch=0))
    assert steps_per_epoch(full, 44_080) == 11_020


def test_a_checkpoint_of_another_normalisation_is_refused(project: Path, tmp_path: Path) -> None:
    """Decibels that were called intensity, other ground: both sides stand in the message."""
    text = load_layout("terramesh").source.read_text()
    own, data = tmp_path / "own.yaml", tmp_path / "data"
    own.write_text(text)
    layout, sar = load_layout(str(own)), np.abs(bands(load_layout("terramesh"), "sar"))
    write_fake(data, str(own), sar=sar)
    run = Run.open(load_config("tiny", data=str(data), layout=str(own)))

    def load() -> None:
        scenes = load_data(run)
        train_despeckler(run, scenes)
        load_pretrained(run, scenes)
        pretrain(run, scenes)

    with pytest.raises(MissingStageError):
        load()
    scenes = load_data(run)
    pretrain(run, scenes)
    load()
    saved = torch.load(Checkpoints(run.path("checkpoints"), {}).paths()[-1], weights_only=True)
    assert saved["settings"]["normalisation"] == normalisation(scenes)
    before = normalisation(scenes)["sar"]["mean"]

    own.write_text(text.replace("scaling: db", "scaling: intensity"))
    with pytest.raises(CheckpointError) as caught:
        load()
    said, now = str(caught.value), normalisation(load_data(run))["sar"]["mean"]
    assert "normalisation.sar.scaling 'db' -> 'intensity'" in said and "\n" not in said
    assert f"normalisation.sar.mean {before} -> {now}" in said and "another run name" in said

    own.write_text(text)
    load()  # nothing was lost
    write_fake(data, str(own), sar=sar, optical=bands(layout, "optical", seed=1))
    with pytest.raises(CheckpointError, match=r"normalisation\.optical\.mean \[.*\] -> \["):
        load()


def test_adamw_learns_at_its_own_rate_whatever_the_batch(project: Path) -> None:
    module = torch.nn.Linear(3, 2)
    settings = load_config("quick", overrides="pretrain.optimizer=adamw pretrain.lr=0.002").pretrain
    made = new_optimizer(module, settings)
    usual = torch.optim.AdamW(
        copy.deepcopy(module).parameters(), lr=0.002, weight_decay=settings.weight_decay
    )
    for optimizer in (made, usual):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    for ours, theirs in zip(
        made.param_groups[0]["params"], usual.param_groups[0]["params"], strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-7)
    assert new_optimizer(module, replace(settings, batch=320)).param_groups[0]["lr"] == 0.002
    sgd = new_optimizer(module, replace(settings, optimizer="sgd", lr=0.03, batch=64))
    assert sgd.param_groups[0]["lr"] == pytest.approx(0.06)


def test_adamw_resumes_to_the_same_end(project: Path) -> None:
    """Interrupted in the middle, which the optimiser's own state must survive."""
    found = []
    for name in ("whole", "broken"):
        run, scenes = ready(name, "pretrain.optimizer=adamw pretrain.lr=0.002")
        pretrain(run, scenes)
        if name == "broken":
            newest = sorted(run.path("checkpoints").glob("step-*.pt"))[-1]
            newest.unlink()
            pretrain(run, scenes)
        weights = load_pretrained(run, scenes).state_dict()
        found.append(weights)
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in found), strict=True))


@pytest.mark.parametrize("stale", ["say", "keep", "fresh"])
def test_pretraining_by_older_code(project: Path, monkeypatch, stale: str) -> None:
    """Kept, or with ``fresh`` trained again from its first step, half-trained runs as well."""
    run, scenes = ready("mine", f"stale={stale}")
    assert pretrain(run, scenes)
    log, original = run.path("pretrain.csv"), run.manifest["stages"]["pretrain"]["code"]
    first = log.stat().st_mtime_ns
    monkeypatch.setattr("umsf_lib.run.code_digest", lambda *modules: "edited")
    monkeypatch.setattr("umsf_lib.pretraining.stage.code_digest", lambda *modules: "edited")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert pretrain(run, scenes) == (stale == "fresh")
    assert any("older code" in str(w.message) for w in said) == (stale == "say")
    assert (log.stat().st_mtime_ns > first) == (stale == "fresh")
    run.manifest["stages"].pop("pretrain")  # as if it had been stopped before its end
    run._save()
    monkeypatch.setattr("umsf_lib.pretraining.stage.code_digest", lambda *modules: "again")
    seen: list[int] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pretrain(run, scenes, progress=lambda step, steps, row: seen.append(step))
    assert any("goes on from it" in str(w.message) for w in said) == (stale == "say")
    assert bool(seen) == (stale == "fresh")  # else the last checkpoint was the end already
    trained_by = run.manifest["stages"]["pretrain"]["code"]
    assert trained_by == {"fresh": "again"}.get(stale, original)  # and it goes on being named


def test_fresh_trains_the_whole_chain_again(project: Path, monkeypatch) -> None:
    """Another despeckler is another input, so the old checkpoints no longer fit."""
    run, scenes = ready("mine")
    pretrain(run, scenes)
    before = run.outputs_of("despeckle"), run.outputs_of("pretrain")
    monkeypatch.setattr("umsf_lib.run.code_digest", lambda *modules: "edited")
    monkeypatch.setattr("umsf_lib.pretraining.stage.code_digest", lambda *modules: "edited")
    monkeypatch.setattr("umsf_lib.models.stage.RATIO_WEIGHT", 0.5)
    fresh = Run.open(load_config("tiny", overrides="stale=fresh"), "mine")
    assert train_despeckler(fresh, scenes) and pretrain(fresh, scenes)
    after = fresh.outputs_of("despeckle"), fresh.outputs_of("pretrain")
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert not pretrain(fresh, scenes)
