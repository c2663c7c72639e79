"""The simulator compared with real WHU-OPT-SAR imagery, and how hard its scenes are.

    python benchmarks/simulator_realism.py [--scenes 20] [--size 1024] [--difficulty realistic]

First it prints each statistic with target, value, tolerance and whether it passed. Then it scores
the tutorial's local statistics of prepared scenes, with both sensors and with each alone: accuracy
of a random forest (with labels), ACC and NMI of the tutorial's mixture (without labels; quick
profile, smoothed as its maps are). Each method learns from one half of the scenes and is scored on
the other, both ways; the mixture has several seeds. Last come the seconds that a scene of 2048 px
takes. The last line is all of it as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from realism import CLASSES, Comparison, compare
from sklearn.ensemble import RandomForestClassifier

from umsf_lib.clustering.inference import Classifier
from umsf_lib.clustering.mixture import fit_mixture, posterior_map
from umsf_lib.clustering.tokens import PrincipalTokens, StatisticTokens, draw_tokens
from umsf_lib.config import Config, load_config
from umsf_lib.data.layout import load_layout
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.stage import prepare
from umsf_lib.data.synthetic import scene_names, write_scenes
from umsf_lib.data.windows import PixelStore, open_store
from umsf_lib.evaluation.metrics import contingency, hungarian, scores
from umsf_lib.simulation.sensors import simulate_scene

SENSORS = ("both", "optical", "sar")
MIXTURES = 3  # seeds per half
FOREST_TOKENS = 30_000
Halves = list[tuple[list[int], list[int]]]  # scenes to learn from, scenes to score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--size", type=int, default=1024, help="px, at least 256 (default 1024)")
    parser.add_argument("--difficulty", default="realistic", choices=("easy", "realistic"))
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default 0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scenes = make_scenes(Path(folder), options)
        rows = compare_scenes(scenes)
        found = {sensors: separability(scenes, sensors) for sensors in SENSORS}
    report = {
        "difficulty": options.difficulty,
        "scenes": f"{options.scenes} x {options.size} px, seed {options.seed}",
        "statistics": [dataclasses.asdict(row) | {"passed": row.passed} for row in rows],
        "passed": sum(row.passed for row in rows),
        "of": len(rows),
        "scores": found,
        "seconds_2048": seconds_of(2048, options.difficulty),
    }
    print(json.dumps(report))


def make_scenes(folder: Path, options: argparse.Namespace) -> SceneSet:
    names, size = scene_names(options.scenes), options.size
    write_scenes(folder, names, options.seed, size, size, difficulty=options.difficulty)
    (folder / "split.txt").write_text(
        "\n".join(["train:", *names, "val:", "test:"]) + "\n", encoding="utf-8"
    )
    return prepare(folder, load_layout("whu-opt-sar"), folder / "prepared")


def compare_scenes(scenes: SceneSet) -> list[Comparison]:
    every = range(len(scenes.records))
    images = [np.concatenate([scenes.plane(r, i) for r in ("optical", "sar")]) for i in every]
    rows: list[Comparison] = compare(images, [scenes.plane("label", i) for i in every])
    for row in rows:
        mark = "passed" if row.passed else "FAILED"
        near = f"{row.target:8.2f} +- {row.tolerance:6.2f}"
        print(f"{row.name:36s} {near}  {row.value:8.2f}  {mark}", file=sys.stderr)
    return rows


def separability(scenes: SceneSet, sensors: str) -> dict[str, float]:
    """Compute mean scores of a forest (with labels) and of mixtures (without), and their spread."""
    config = load_config("quick", overrides=f"model.sensors={sensors}")
    store = open_store(scenes, config, torch.device("cpu"))
    every = list(range(len(scenes.records)))
    make = StatisticTokens(store, every, config.cluster.sigmas_px, config.model.stride)
    tokens = {scene: make(scene) for scene in every}
    halves = [(every[0::2], every[1::2]), (every[1::2], every[0::2])]
    forest = [forest_accuracy(scenes, tokens, config, *half) for half in halves]
    mixture = [
        mixture_scores(scenes, store, tokens, config, seed, *half)
        for half in halves
        for seed in range(MIXTURES)
    ]
    (acc, nmi), (acc_std, nmi_std) = np.mean(mixture, axis=0), np.std(mixture, axis=0)
    named = {"random_forest": np.mean(forest), "mixture": acc, "mixture_std": acc_std}
    named |= {"mixture_nmi": nmi, "mixture_nmi_std": nmi_std}
    result = {name: round(float(value), 3) for name, value in named.items()}
    print(f"{sensors:8s} {result}", file=sys.stderr, flush=True)
    return result


def centre_labels(scenes: SceneSet, scene: int, stride: int) -> np.ndarray:
    return scenes.plane("label", scene)[stride // 2 :: stride, stride // 2 :: stride]


def forest_accuracy(
    scenes: SceneSet,
    tokens: dict[int, torch.Tensor],
    config: Config,
    learn: Sequence[int],
    score: Sequence[int],
) -> float:
    rng, sets = np.random.default_rng(0), []
    for part in (learn, score):
        x = np.concatenate([tokens[scene].flatten(1).T.numpy() for scene in part])
        y = np.concatenate([centre_labels(scenes, i, config.model.stride).ravel() for i in part])
        pick = rng.choice(len(x), min(FOREST_TOKENS, len(x)), replace=False)
        sets.append((x[pick], y[pick]))
    forest = RandomForestClassifier(100, min_samples_leaf=4, n_jobs=-1, random_state=0)
    forest.fit(*sets[0])
    return float((forest.predict(sets[1][0]) == sets[1][1]).mean())


def mixture_scores(
    scenes: SceneSet,
    store: PixelStore,
    tokens: dict[int, torch.Tensor],
    config: Config,
    seed: int,
    learn: Sequence[int],
    score: Sequence[int],
) -> tuple[float, float]:
    """Compute ACC and NMI as the tutorial does; clusters are matched on the half learnt from."""
    k, stride, settings = len(CLASSES), config.model.stride, config.cluster
    token_map = tokens.__getitem__
    sample = draw_tokens(token_map, store, learn, stride, settings.tokens, seed)
    if sample.shape[1] > settings.max_dims:
        token_map = PrincipalTokens(token_map, sample, settings.max_dims)
        sample = draw_tokens(token_map, store, learn, stride, settings.tokens, seed)
    mixture = fit_mixture(sample, k, settings.restarts, seed)
    found = Classifier("", k, stride, lambda scene: posterior_map(mixture, token_map, scene))

    def table(part: Sequence[int]) -> np.ndarray:
        total = np.zeros((k, k), np.int64)
        for scene in part:
            clusters = found.pixels(store, scene, settings.smoothing_px).argmax(dim=0).numpy()
            total += contingency(clusters, scenes.plane("label", scene), k, k)
        return total

    result = scores(table(score), hungarian(table(learn)))
    return result["acc"], result["nmi"]


def seconds_of(size: int, difficulty: str) -> float:
    begin = time.perf_counter()
    simulate_scene(1, size, size, difficulty)
    return round(time.perf_counter() - begin, 2)


if __name__ == "__main__":
    main()
