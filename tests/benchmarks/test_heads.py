"""The heads of ``benchmarks/heads.py``: closed forms, and points whose clusters are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from benchmarks import heads


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "TEMI_HEADS": 2,
        "TEMI_EPOCHS": 10,
        "TEMI_BATCH": 64,
        "TURTLE_STEPS": 200,
    }.items():
        monkeypatch.setattr(heads, name, value)


@pytest.mark.parametrize("beta", [0.6, 1.0])
def test_temi_of_balanced_one_hots_and_of_uniform_answers(beta: float) -> None:
    one_hot, uniform = torch.eye(7), torch.full((7, 7), 1 / 7)
    marginal = torch.full((7,), 1 / 7)
    sure = heads.temi_pmi(one_hot, one_hot, marginal, beta)
    unsure = heads.temi_pmi(uniform, uniform, marginal, beta)
    torch.testing.assert_close(sure, torch.full((7,), math.log(7)))
    torch.testing.assert_close(unsure, torch.full((7,), (2 - 2 * beta) * math.log(7)))


def blobs(rng: np.random.Generator, labels: np.ndarray, width: int) -> np.ndarray:
    centres = rng.normal(0, 8, (labels.max() + 1, width))
    points: np.ndarray = centres[labels] + rng.normal(0, 1, (len(labels), width))
    return points


def test_temi_finds_blobs() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 1500)
    points = blobs(rng, labels, 5)
    found = heads.fit_temi(points, 3, 0, 1.0).posteriors(points)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert normalized_mutual_info_score(labels, found.argmax(axis=1)) > 0.95


def test_turtle_takes_the_grouping_that_every_space_shows() -> None:
    rng = np.random.default_rng(0)
    shared, own = rng.integers(0, 2, (2, 1000))
    first = np.concatenate([blobs(rng, shared, 3), blobs(rng, own, 3)], axis=1)  # shows both
    second = np.concatenate([blobs(rng, shared, 3), rng.normal(0, 1, (1000, 3))], axis=1)
    points = np.concatenate([first, second], axis=1)
    found = heads.fit_turtle(points, (6, 6), 2, 0, 3.0).posteriors(points).argmax(axis=1)
    assert normalized_mutual_info_score(shared, found) > 0.95
