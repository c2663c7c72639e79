"""Tables of the suite of supervised networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, jaccard_score

from umsf_lib.experiments.sweep import Sweep
from umsf_lib.experiments.tables import network_rows, sensor_gains

from ..experiments.test_suites import TINY, fake_run

Pixels = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def counted(project: Path) -> dict[tuple[str, int], Pixels]:
    """Two seeds of three networks, with the predicted and true class of each pixel."""
    rng, found = np.random.default_rng(0), {}
    for seed in (0, 1):
        for sensors, method in (("both", "add"), ("optical", "concat"), ("sar", "concat")):
            name = method if sensors == "both" else f"{sensors} alone"
            true = rng.integers(0, 2, 600)
            wrong = rng.random(600) < {"both": 0.1, "optical": 0.2, "sar": 0.3}[sensors]
            found[name, seed] = predicted, true = np.where(wrong, 1 - true, true), true
            table = np.zeros((1, 2, 2), np.int64)
            np.add.at(table[0], (predicted, true), 1)
            model = dataclasses.replace(TINY.model, sensors=sensors)
            config = dataclasses.replace(TINY, seed=seed, model=model)
            ending = "" if sensors == "both" else f"-{sensors}"
            fake_run(config, f"tiny-easy-{seed}{ending}", {f"supervised-{method}": table})
    return found


def test_networks_have_their_scores_and_the_iou_of_each_class(
    counted: dict[tuple[str, int], Pixels],
) -> None:
    table = network_rows(Sweep(TINY, "supervised", (0, 1)))
    assert set(table.index) == {"add", "optical alone", "sar alone"}
    for name, row in table.iterrows():
        pixels = [counted[str(name), seed] for seed in (0, 1)]
        right = np.mean([accuracy_score(*both) for both in pixels])
        assert row["OA"] == pytest.approx(right)
        iou = np.mean([jaccard_score(*both, average=None) for both in pixels], axis=0)
        assert row[["IoU farmland", "IoU city"]].tolist() == pytest.approx(iou.tolist())
        every = [jaccard_score(*both, average="macro") for both in pixels]
        assert row.mIoU == pytest.approx(np.mean(every)) and row.seeds == 2


def test_gains_are_over_the_optical_control_of_the_same_seed(
    counted: dict[tuple[str, int], Pixels],
) -> None:
    def miou(name: str, seed: int) -> float:
        return float(jaccard_score(*counted[name, seed], average="macro"))

    gains = sensor_gains(Sweep(TINY, "supervised", (0, 1))).set_index("name")
    assert set(gains.index) == {"add", "sar alone"}
    for name, row in gains.iterrows():
        each = [miou(str(name), seed) - miou("optical alone", seed) for seed in (0, 1)]
        assert row.tolist() == pytest.approx([np.mean(each), min(each), max(each)])
