"""The simulator beside measurements of real WHU-OPT-SAR imagery, and how hard its scenes are.

    python benchmarks/simulator_realism.py [--scenes 20] [--size 1024] [--difficulty realistic]

Prints each statistic with target, value, tolerance and whether it passed; then the accuracy of a
random forest on local statistics, trained with the labels of half the scenes and scored on the
others, with both sensors and with each alone; then the seconds that a scene of 2048 px takes. The
last line is all of it as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier

from umsf_lib.cluster import fit_mixture
from umsf_lib.metrics import contingency, hungarian, scores
from umsf_lib.realism import CLASSES, compare
from umsf_lib.scenes import to_log_intensity
from umsf_lib.simulate_sensors import simulate_scene
from umsf_lib.tokens import local_statistics

STRIDE, SIGMAS = 4, (1.5, 5.0)
TOKENS = 30_000  # to train on, and as many to score
SENSORS = {"both": slice(0, 6), "optical": slice(0, 5), "sar": slice(5, 6)}  # of the bands below
# What local statistics reach on held-out real tiles, and what each sensor has to add.
RANGE, GAIN = (0.45, 0.65), 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--size", type=int, default=1024, help="px, at least 256 (default 1024)")
    parser.add_argument("--difficulty", default="realistic", choices=("easy", "realistic"))
    options = parser.parse_args()
    images, labels = [], []
    for seed in range(options.scenes):
        scene = simulate_scene(seed, options.size, options.size, options.difficulty)
        images.append(np.concatenate([scene["optical"], scene["sar"]]))
        labels.append((scene["label"] // 10 - 1).astype(np.uint8))
    rows = compare(images, labels)
    for row in rows:
        mark = "passed" if row.passed else "FAILED"
        near = f"{row.target:8.2f} +- {row.tolerance:6.2f}"
        print(f"{row.name:32s} {near}  {row.value:8.2f}  {mark}", file=sys.stderr)
    report = {
        "difficulty": options.difficulty,
        "scenes": f"{options.scenes} x {options.size} px",
        "statistics": [dataclasses.asdict(row) | {"passed": row.passed} for row in rows],
        "passed": sum(row.passed for row in rows),
        "of": len(rows),
        "scores": separability(images, labels),
        "seconds_2048": seconds_of(2048, options.difficulty),
    }
    for name, values in report["scores"].items():
        print(f"{name:8s} {values}", file=sys.stderr)
    print(json.dumps(report))


def tokens_of(image: np.ndarray) -> np.ndarray:
    """``(n, 6, 4)``: bands, NDVI and ln SAR of a scene, by mean and spread at two scales."""
    optical = torch.from_numpy(image[:4]).float()
    ndvi = (optical[3] - optical[2]) / (optical[3] + optical[2]).clamp_min(1)
    sar = to_log_intensity(torch.from_numpy(image[4]).float(), "amplitude8")
    bands = torch.cat([optical, ndvi[None], sar[None]])
    bands = (bands - bands.mean((1, 2), keepdim=True)) / bands.std((1, 2), keepdim=True)
    found = local_statistics(bands[None], SIGMAS, STRIDE)  # (2 S C, h, w)
    return found.view(4, 6, -1).permute(2, 1, 0).numpy()


def separability(images: list[np.ndarray], labels: list[np.ndarray]) -> dict[str, dict]:
    """ACC of a random forest (with labels) and of a full mixture (without) per set of sensors."""
    rng, half = np.random.default_rng(0), len(images) // 2
    sets = []
    for chosen in (slice(0, half), slice(half, None)):
        x = np.concatenate([tokens_of(image) for image in images[chosen]])
        y = np.concatenate([label[2::STRIDE, 2::STRIDE].ravel() for label in labels[chosen]])
        pick = rng.choice(len(x), min(TOKENS, len(x)), replace=False)
        sets.append((x[pick], y[pick]))
    (x, y), (x_test, y_test) = sets
    found = {}
    for name, bands in SENSORS.items():
        a, b = (t[:, bands].reshape(len(t), -1) for t in (x, x_test))
        forest = RandomForestClassifier(100, min_samples_leaf=4, n_jobs=-1, random_state=0)
        supervised = float((forest.fit(a, y).predict(b) == y_test).mean())
        clusters = mixture_accuracy(a, b, y_test)
        found[name] = {"random_forest": round(supervised, 3), "mixture": round(clusters, 3)}
    return found


def mixture_accuracy(a: np.ndarray, b: np.ndarray, y: np.ndarray) -> float:
    """ACC of the tutorial's own mixture, fitted on ``a``, on ``b`` with class ids ``y``."""
    k = len(CLASSES)
    clusters = fit_mixture(a[:10_000], k, restarts=5, seed=0).posteriors(b).argmax(axis=1)
    table = contingency(clusters, y, k, k)
    return scores(table, hungarian(table))["acc"]


def seconds_of(size: int, difficulty: str) -> float:
    begin = time.perf_counter()
    simulate_scene(1, size, size, difficulty)
    return round(time.perf_counter() - begin, 2)


if __name__ == "__main__":
    main()
