"""Training with labels: losses, windows and schedule against slow answers; resumed exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from umsf_lib.__main__ import main
from umsf_lib.clustering.task import ClusteringTask
from umsf_lib.config import IGNORE, Config, ConfigError, DataError, load_config
from umsf_lib.data.layout import load_layout
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.stage import load_data
from umsf_lib.data.windows import PixelStore, training_tiles
from umsf_lib.evaluation.stage import load_records
from umsf_lib.experiments.pipeline import METHODS, run_everything
from umsf_lib.experiments.sweep import SUITES
from umsf_lib.models.encoders import pyramid
from umsf_lib.models.kept import start_streams
from umsf_lib.run import Run, seed_everything
from umsf_lib.supervised import CEILING, stage
from umsf_lib.supervised.networks import NETWORKS, Form, LevelFusion, supervised_network
from umsf_lib.supervised.stage import (
    LabelledWindows,
    fit_network,
    label_losses,
    new_optimizer,
    pixel_classifier,
    turned,
)

TINY = load_config("tiny")
FORM = Form({"optical": 4, "sar": 1}, 7, channels=8)


def test_the_loss_is_a_mean_over_labelled_pixels() -> None:
    torch.manual_seed(0)
    outputs = [torch.randn(2, 3, 4, 5) for _ in range(2)]
    labels = torch.randint(3, (2, 4, 5))
    labels[:, 1] = IGNORE
    for found, logits in zip(label_losses(outputs, labels), outputs, strict=True):
        each = [
            math.log(sum(math.exp(v) for v in values)) - values[c]
            for values, c in zip(
                logits.permute(0, 2, 3, 1).reshape(-1, 3).tolist(),
                labels.flatten().tolist(),
                strict=True,
            )
            if c != IGNORE
        ]
        assert float(found) == pytest.approx(np.mean(each), rel=1e-5)
    nothing = label_losses([x.requires_grad_() for x in outputs], torch.full_like(labels, IGNORE))
    assert nothing.tolist() == [0, 0]
    nothing.sum().backward()
    assert outputs[0].grad is not None and not outputs[0].grad.any()


def test_all_eight_symmetries_of_the_square_are_drawn() -> None:
    square = torch.arange(9.0).view(3, 3)
    found = turned(square.expand(8, 2, 3, 3), list(range(8)))
    assert found.shape == (8, 2, 3, 3) and torch.equal(found[0, 0], square)
    assert len({tuple(one[1].flatten().tolist()) for one in found}) == 8
    for one in found:
        assert float(one[0, 1, 1]) == 4 and sorted(one[0].flatten().tolist()) == [*range(9)]


class Labels(PixelStore):
    """The places of a real store; every band shows the label."""

    def __init__(self, store: PixelStore, scenes: SceneSet) -> None:
        self.__dict__ |= store.__dict__
        self.scenes = scenes

    def windows(self, scene: Tensor, row: Tensor, col: Tensor, size: int) -> dict[str, Tensor]:  # type: ignore[override]
        found = super().windows(scene, row, col, size)
        shown = []
        for s, r, c in torch.stack([scene, row, col], dim=1).tolist():
            label = self.scenes.plane("label", s)[r : r + size, c : c + size].astype(np.float32)
            valid = self.scenes.plane("valid", s)[r : r + size, c : c + size]
            shown.append(torch.from_numpy(np.where(valid, label, np.float32(IGNORE))))
        every = torch.stack(shown)[:, None]
        return found | {role: every.expand_as(found[role]) for role in self.roles}


def test_images_and_labels_are_turned_together(whu: SceneSet, whu_store: PixelStore) -> None:
    windows = LabelledWindows(whu, Labels(whu_store, whu), TINY)
    generator, seen = torch.Generator().manual_seed(0), []
    for _ in range(20):
        images, labels = windows.draw(generator)
        assert labels.shape == (TINY.supervised.batch, 32, 32) and labels.dtype == torch.int64
        for role in ("optical", "sar"):
            assert torch.equal(images[role][:, 0].long(), labels)
        seen += [one.flatten().tolist() for one in labels]
    known = {tuple(windows.labels(*tile).ravel().tolist()) for tile in windows.tiles.tolist()}
    straight = sum(tuple(one) in known for one in seen)
    assert 0 < straight < len(seen)  # about an eighth is neither turned nor flipped


def test_labels_of_one_class_only_are_refused(
    whu: SceneSet, whu_store: PixelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = LabelledWindows.labels

    def water_or_nothing(self: LabelledWindows, *place: int) -> np.ndarray:
        return np.where(usual(self, *place) == 3, 3, IGNORE)

    monkeypatch.setattr(LabelledWindows, "labels", water_or_nothing)
    with pytest.raises(DataError, match=f"only the class '{whu.layout.classes[3].name}'"):
        LabelledWindows(whu, whu_store, TINY)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2, 0.05])
def test_a_share_of_the_labelled_windows_is_the_same_in_every_run(
    whu: SceneSet, whu_store: PixelStore, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("tiny", overrides=f"supervised.labelled={share}")
    tiles = training_tiles(whu, 32, 0).tolist()
    usual = LabelledWindows.labels

    def without(self: LabelledWindows, scene: int, row: int, col: int) -> np.ndarray:
        empty = (scene, row, col) == tuple(tiles[0])
        return np.full((32, 32), IGNORE) if empty else usual(self, scene, row, col)

    monkeypatch.setattr(LabelledWindows, "labels", without)
    first, again = (LabelledWindows(whu, whu_store, config).tiles.tolist() for _ in range(2))
    assert first == again == sorted(first) and tiles[0] not in first
    n = len(tiles) - 1
    assert len(first) == {1.0: n, 0.5: (n + 1) // 2, 0.2: (n + 4) // 5, 0.05: (n + 19) // 20}[share]
    more = LabelledWindows(whu, whu_store, TINY).tiles.tolist()
    assert all(tile in more for tile in first) and len({tuple(t) for t in first}) == len(first)
    monkeypatch.setattr(LabelledWindows, "labels", lambda *_: np.full((32, 32), IGNORE))
    with pytest.raises(DataError, match="no training window of 32 px in .* has a label; notebooks"):
        LabelledWindows(whu, whu_store, config)


def test_what_a_scan_forgets_does_not_decay() -> None:
    form = Form({"optical": 4, "sar": 1}, 3, channels=8)
    network = supervised_network("ref_net", form)
    decaying, free = new_optimizer(network, TINY).param_groups
    assert (decaying["weight_decay"], free["weight_decay"]) == (TINY.supervised.weight_decay, 0)
    scans = [m for m in network.modules() if type(m).__name__ == "SelectiveScan2d"]
    wanted = {id(p) for scan in scans for p in (scan.log_rate, scan.skip)}
    assert scans and {id(p) for p in free["params"]} == wanted
    assert len(decaying["params"]) + len(wanted) == len(list(network.parameters()))
    assert len(new_optimizer(supervised_network("add", form), TINY).param_groups) == 1


@pytest.fixture
def task(tiny_run: Run) -> ClusteringTask:
    return ClusteringTask.of_run(tiny_run, load_data(tiny_run))


def started(config: Config, name: str) -> tuple[Run, ClusteringTask]:
    run = Run.open(config, name)
    return run, ClusteringTask.of_run(run, load_data(run))


@pytest.mark.parametrize("name", ["amm_fusenet", "ref_net"])  # with dropout and drop path
def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(
    project: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "EVERY", 2)
    config = load_config("tiny", overrides="supervised.steps=5")
    run, task = started(config, "whole")
    fit_network(name, run, task)
    other, task = started(config, "stopped")

    class Enough(Exception):
        pass

    def stop(step: int, steps: int, row: object) -> None:
        if step == 3:
            raise Enough

    with pytest.raises(Enough):
        fit_network(name, other, task, progress=stop)
    folder = f"checkpoints/supervised-{name}"
    assert [p.name[:11] for p in other.path(folder).glob("*.pt")] == ["step-000002"]
    fit_network(name, other, task)
    ends = [min(r.path(folder).glob("step-000005-*.pt")) for r in (run, other)]
    states = [torch.load(path, weights_only=True)["module"] for path in ends]
    assert all(torch.equal(weight, states[1][key]) for key, weight in states[0].items())
    logs = [pd.read_csv(r.path(f"supervised-{name}.csv")) for r in (run, other)]
    pd.testing.assert_frame_equal(*logs)
    # The last step has one of five steps left.
    settings = config.supervised
    assert logs[0].lr.iloc[-1] == pytest.approx(settings.lr * 0.2**settings.power)
    before = ends[0].stat().st_mtime_ns
    fit_network(name, run, task)
    assert ends[0].stat().st_mtime_ns == before


def test_auxiliary_heads_count_with_their_weight(project: Path) -> None:
    """The first loss of a training, computed again: fused and 0.005 times both streams."""
    run, task = started(load_config("tiny", overrides="supervised.steps=1"), "one")
    fit_network("ref_net", run, task)
    generator = seed_everything(run.config.seed)
    network = supervised_network("ref_net", FORM).train()
    images, labels = LabelledWindows(task.scenes, task.store, run.config).draw(generator)
    fused, *streams = label_losses(network(images), labels).tolist()
    logged = pd.read_csv(run.path("supervised-ref_net.csv")).loss.item()
    assert logged == pytest.approx(fused + 0.005 * sum(streams), rel=1e-6) and len(streams) == 2


@pytest.mark.parametrize(("name", "size"), [("add", 16), ("unet", 32), ("deeplabv3plus", 64)])
def test_one_window_of_one_token_is_refused(project: Path, name: str, size: int) -> None:
    """DeepLabV3+ makes one token of a window of any size."""
    overrides = f"supervised.batch=1 views.window_px={size}"
    run, task = started(load_config("tiny", overrides=overrides), "one")
    said = f"batch is 1 and views.window_px {size}, so the batch norms of {name} .*=2 or more"
    with pytest.raises(ConfigError, match=said):
        fit_network(name, run, task)
    assert not run.is_done(f"supervised-{name}")


def trained(name: str, run_name: str, overrides: str) -> dict[str, Tensor]:
    """The weights of a network at the end of a training."""
    config = load_config("tiny", overrides=f"supervised.steps=2 {overrides}")
    run, task = started(config, run_name)
    fit_network(name, run, task)
    (path,) = run.path(f"checkpoints/supervised-{name}").glob("step-000002-*.pt")
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["module"]
    return state


def test_a_network_starts_from_umsf_small(project: Path) -> None:
    """With a vanishing rate the start is also the end."""
    start = "supervised.weights=umsf-small"
    first, again = (trained("add", name, start) for name in ("first", "again"))
    assert all(torch.equal(weight, again[key]) for key, weight in first.items())
    resting, random = (
        trained("add", name, f"supervised.lr=1e-30 {more}")
        for name, more in (("resting", start), ("random", ""))
    )
    streams = torch.nn.ModuleDict({r: pyramid("small", n)[0] for r, n in FORM.bands.items()})
    start_streams(streams, load_layout("whu-opt-sar"))
    weights = [name for name, p in streams.named_parameters() if p.ndim == 4]
    quarter = [name for name in weights if name.split(".")[1] in "012"]
    assert 0 < len(quarter) < len(weights)
    kept = streams.state_dict()
    for name in weights:
        own = resting[f"streams.{name}"]
        assert torch.equal(own, kept[name]) == (name in quarter)
        assert torch.equal(own, random[f"streams.{name}"]) == (name not in quarter)
        assert not torch.equal(own, first[f"streams.{name}"])


@pytest.mark.parametrize(("name", "backbone"), [("add", "resnet18"), ("unet", "small")])
def test_a_start_from_umsf_small_needs_its_shapes(project: Path, name: str, backbone: str) -> None:
    overrides = f"supervised.weights=umsf-small supervised.backbone={backbone}"
    run, task = started(load_config("tiny", overrides=overrides), "one")
    said = f"but {name} with backbone {backbone} has other shapes; set supervised.weights=none"
    with pytest.raises(ConfigError, match=said):
        fit_network(name, run, task)


def test_it_is_a_method_of_a_run_without_pretraining(project: Path) -> None:
    """It predicts the classes, however many clusters other methods have."""
    overrides = "cluster.num_clusters=9 model.sensors=sar"
    run = Run.open(load_config("tiny", overrides=overrides), "mine")
    run_everything(run, ["supervised-concat", "kmeans-statistics"])
    assert set(run.manifest["stages"]) == {"data", "supervised-concat", "evaluate"}
    found = load_records([run.folder])
    assert set(found.method) == {"supervised-concat", "kmeans-statistics"}
    with np.load(run.path("confusions.npz")) as saved:
        for name in ("mapping", "named"):  # it knows the classes, so nothing is matched
            assert saved[f"supervised-concat/dense/{name}"].tolist() == [*range(7)]
        rows = [
            saved[f"{n}/dense/test"].shape[1] for n in ("supervised-concat", "kmeans-statistics")
        ]
    assert rows == [7, 9]
    task = ClusteringTask.of_run(run, load_data(run))
    classifier = METHODS["supervised-concat"](run, task)
    posteriors = classifier.posteriors(task.scenes.indices("test")[0])
    assert posteriors.shape == (7, 128, 128)
    assert torch.allclose(posteriors.sum(dim=0), torch.ones(128, 128), atol=1e-5)


def test_the_suite_has_a_table_without_our_method(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert set(SUITES["supervised"]["base"]) == set(CEILING) - {"supervised"}
    few = {"base": ("supervised-add",), "sar": ("supervised-concat",)}
    monkeypatch.setitem(SUITES, "supervised", few)
    options = ["--suite", "supervised", "--profile", "tiny", "--seeds", "0", "--records", "none"]
    assert main(["sweep", *options]) == 0
    table = capsys.readouterr().out.partition("| method")[2]
    rows = [line.split("|")[1:3] for line in table.splitlines() if "supervised-" in line]
    names = [[cell.strip() for cell in row] for row in rows]
    assert names[:2] == [["supervised-add", "base"], ["supervised-concat", "sar"]]
    assert "Ours minus" not in table
    assert "recall of each class" in table and "of each test scene" not in table


def test_posteriors_of_a_scene_are_those_of_its_pixels(task: ClusteringTask) -> None:
    """A network that looks at single pixels answers alike in every tile."""
    network = LevelFusion(FORM).eval()
    conv = torch.nn.Conv2d(4, 7, 1)
    network.forward = lambda images: [conv(images["optical"])]  # type: ignore[assignment, misc]
    scene = task.scenes.indices("test")[0]
    with torch.no_grad():
        found = pixel_classifier(network, task, "mine").posteriors(scene)
        expected = conv(task.store.scene(scene)["optical"])[0].softmax(dim=0)
    torch.testing.assert_close(found, expected)


def test_without_labels_it_says_which_notebooks_work(project: Path, pairs: SceneSet) -> None:
    run, store = Run.open(TINY, "mine"), PixelStore(pairs, pairs.statistics, torch.device("cpu"))
    with pytest.raises(
        DataError, match="have no labels, .*; notebooks 03, 04 and 06 need no labels"
    ):
        fit_network("add", run, ClusteringTask(pairs, store, TINY))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_learns_four_windows_by_heart(name: str) -> None:
    torch.manual_seed(0)
    network = supervised_network(name, Form({"optical": 4, "sar": 1}, 3, channels=32))
    images = {"optical": torch.randn(4, 4, 32, 32), "sar": torch.randn(4, 1, 32, 32)}
    coarse = torch.randint(3, (4, 4, 4))
    labels = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[:, :2] = IGNORE
    optimizer = new_optimizer(network, replace(TINY, supervised=replace(TINY.supervised, lr=3e-3)))
    for _ in range(200):
        losses = label_losses(network(images), labels)
        optimizer.zero_grad()
        (losses[0] + network.auxiliary * losses[1:].sum()).backward()
        optimizer.step()
    with torch.no_grad():
        said = network(images)[0].argmax(dim=1)
    known = labels != IGNORE
    assert float((said == labels)[known].float().mean()) > 0.99
