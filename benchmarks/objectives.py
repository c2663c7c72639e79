"""What each pretraining objective costs and gives, side by side on development scenes.

    python benchmarks/objectives.py [--profile quick] [--seed 100] [--only moco,decur]

Per variant: seconds per step (the shortest of interleaved rounds, so that other load hits all
alike), and the NMI of k-means and of a mixture on its frozen fused tokens, fitted on training
scenes, scored on validation scenes; k-means also with one sensor blanked, the mean of both. Runs
are kept, so an interrupted benchmark goes on. Writes ``runs/objectives.csv``; the last line is all
of it as JSON. Seeds 100 and 101 are for choices; report on others.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from umsf_lib.clustering.stage import feature_tokens
from umsf_lib.clustering.task import ClusteringTask
from umsf_lib.config import load_config
from umsf_lib.data.stage import load_data
from umsf_lib.evaluation.metrics import nmi
from umsf_lib.evaluation.stage import score_scenes
from umsf_lib.models.stage import train_despeckler
from umsf_lib.models.umsf_net import UmsfNet
from umsf_lib.pretraining.stage import build_learner, load_pretrained, new_network, pretrain
from umsf_lib.run import Run, project_root, write_atomically
from umsf_lib.training.loop import print_progress, trainable

VARIANTS = {
    "no pretraining": "",
    "moco": "",
    "mocov3": "pretrain.objective=mocov3 pretrain.tau=0.2",
    "decur": "pretrain.objective=decur",
    "moco, sensor drop": "views.sensor_drop=0.5",
    "moco, neighbours": "pretrain.positives=[1,1,1]",
    "moco, alike neighbours": "pretrain.positives=[1,1,1] pretrain.homogeneity=0.5",
}
ROUNDS, STEPS = 6, 3  # of timing


def open_run(options: argparse.Namespace, name: str, overrides: str) -> Run:
    config = load_config(options.profile, seed=options.seed, overrides=overrides)
    word = name.replace(", ", "-").replace(" ", "-")
    return Run.open(config, f"objectives-{options.profile}-{options.seed}-{word}")


def stepper(run: Run) -> Callable[[], None]:
    """One step of a run's training, without log and checkpoint."""
    generator = torch.Generator().manual_seed(0)
    learner, source = build_learner(run, load_data(run), generator)
    settings, window = run.config.pretrain, run.config.views.window_px
    optimizer = torch.optim.SGD(trainable(learner.parameters()), 1e-3, momentum=0.9)
    learner.train()

    def step() -> None:
        batch = source.draw(settings.batch, generator)
        loss, extra = learner(batch, window / 2)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        learner.enqueue(batch, extra["enqueue"])
        learner.update_keys()

    return step


def seconds_per_step(runs: dict[str, Run]) -> dict[str, float]:
    steps = {name: stepper(run) for name, run in runs.items()}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(ROUNDS + 1):  # the first warms up
        for name, step in steps.items():
            begin = time.perf_counter()
            for _ in range(STEPS):
                step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                found[name].append((time.perf_counter() - begin) / STEPS)
    return {name: min(values) for name, values in found.items()}


class Blanked(torch.nn.Module):
    """A network one of whose sensors is blind."""

    def __init__(self, network: UmsfNet, sensor: str) -> None:
        super().__init__()
        self.network, self.sensor = network, sensor
        self.stride = network.stride

    def features(self, x_opt: Tensor, x_sar: Tensor) -> dict[str, Tensor]:
        x = {"optical": x_opt, "sar": x_sar}
        x[self.sensor] = torch.zeros_like(x[self.sensor])
        return self.network.features(x["optical"], x["sar"])


def nmi_of(task: ClusteringTask, network: Any, kind: str) -> float:
    """NMI of clusters of frozen fused tokens on the validation scenes, dense pixels."""
    tokens = task.reduced(feature_tokens(network, task, "fused"))
    found = task.cluster(kind, kind, tokens, task.stride)
    tables = score_scenes([found], task, task.scenes.indices("val"))[kind]["dense"]
    return nmi(tables.sum(axis=0))


def judge_records(run: Run, trained: bool) -> dict[str, float]:
    scenes = load_data(run)
    task = ClusteringTask.of_run(run, scenes)
    network = (load_pretrained if trained else new_network)(run, scenes).to(run.device).eval()
    blind = [nmi_of(task, Blanked(network, sensor), "kmeans") for sensor in ("optical", "sar")]
    row = {f"{kind}_nmi": nmi_of(task, network, kind) for kind in ("kmeans", "mixture")}
    return row | {"one_sensor_nmi": float(np.mean(blind))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--only", default="", help="variants separated by ';' (default all)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = {
        n: o for n, o in VARIANTS.items() if n in (options.only or ";".join(VARIANTS)).split(";")
    }
    runs, rows = {name: open_run(options, name, o) for name, o in chosen.items()}, []
    for run in runs.values():
        train_despeckler(run, load_data(run))
    cost = seconds_per_step(runs)
    for name, run in runs.items():
        trained = name != "no pretraining"
        if trained:
            pretrain(run, load_data(run), progress=print_progress(name))
        settings = run.config.pretrain
        row = {"variant": name, "overrides": chosen[name], "seed": options.seed}
        row |= {"profile": options.profile, "device": str(run.device)}
        row |= {"threads": torch.get_num_threads(), "batch": settings.batch}
        row |= {"seconds_per_step": round(cost[name], 4) if trained else 0.0}
        rows.append(
            row | {key: round(value, 4) for key, value in judge_records(run, trained).items()}
        )
        print(rows[-1], flush=True)
        table = pd.DataFrame(rows)
        path = project_root() / "runs" / "objectives.csv"
        write_atomically(path, lambda temporary, t=table: t.to_csv(temporary, index=False))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
