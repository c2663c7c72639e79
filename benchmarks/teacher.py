"""What a label-free teacher knows: mixtures of local statistics, and the rules that merge them.

    python benchmarks/teacher.py [--profile quick] [--seeds 100,101]

Per seed and difficulty one set of synthetic scenes and one pretraining (two minutes, kept in
``runs/``).
Every merged mixture is scored like any method: dense pixels of the test scenes, clusters matched on
validation scenes. ``labels`` gives each component its most frequent class of the validation scenes:
what no rule without labels passes by much. These seeds are for choices; report on others. Writes
``runs/teacher.csv``; the last line is all of it as JSON.
"""

from __future__ import annotations

import argparse
import json
import warnings
from functools import partial

import numpy as np
import pandas as pd
import torch

from umsf_lib.baselines.heads import merged as shared_tokens
from umsf_lib.baselines.random_network import random_tokens
from umsf_lib.bench import Bench
from umsf_lib.classify import feature_tokens, merge_by, merged
from umsf_lib.cluster import fit_mixture, posterior_map
from umsf_lib.config import load_config
from umsf_lib.despeckle import train_despeckler
from umsf_lib.inference import Classifier
from umsf_lib.metrics import hungarian, scores
from umsf_lib.prepare import load_data
from umsf_lib.pretrain import load_pretrained, pretrain
from umsf_lib.report import score_scenes
from umsf_lib.runs import Run, project_root, write_atomically

COMPONENTS = (1, 2, 3)  # per cluster
DIFFICULTIES = ("easy", "mild", "realistic")
SHOWN = ("acc", "nmi", "macro_f1")


def tables(classifier: Classifier, bench: Bench, part: str) -> np.ndarray:
    """``(K, classes)`` pixels of a part of the scenes."""
    found = score_scenes([classifier], bench, bench.scenes.indices(part))
    table: np.ndarray = found[classifier.name]["dense"].sum(axis=0)
    return table


def rows_of(run: Run) -> list[dict[str, object]]:
    """One row per number of components and rule."""
    scenes = load_data(run)
    train_despeckler(run, scenes)
    pretrain(run, scenes)
    bench, rows = Bench.of_run(run, scenes), []
    tokens, clusters = bench.sample(bench.statistics, bench.stride), bench.num_clusters
    spaces = {
        "local statistics": bench.statistics,
        "random features": random_tokens(run, bench),
        "pretrained features": feature_tokens(load_pretrained(run, scenes).eval(), bench, "fused"),
    }
    for components in (clusters * per for per in COMPONENTS):
        mixture = fit_mixture(tokens, components, run.config.cluster.restarts, run.config.seed)
        posteriors = partial(posterior_map, mixture, bench.statistics)
        fine = Classifier("fine", components, bench.stride, posteriors)
        groups = {"labels": torch.from_numpy(tables(fine, bench, "val").argmax(axis=1))}
        if components == clusters:
            groups["-"] = torch.arange(clusters)
        else:
            shared = shared_tokens(mixture.posteriors(tokens), clusters)
            groups["shared tokens alone"] = torch.from_numpy(shared)
            groups |= {name: merge_by(space, fine, bench) for name, space in spaces.items()}
        for name, group in groups.items():
            clusterer = merged(fine, group, "merged")
            matching = hungarian(tables(clusterer, bench, "val"))
            found = scores(tables(clusterer, bench, "test"), matching)
            row = {"difficulty": run.config.synthetic.difficulty, "seed": run.config.seed}
            row |= {"components": components, "merged by": name}
            rows.append(row | {metric: round(float(found[metric]), 4) for metric in SHOWN})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--seeds", default="100,101")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for seed in map(int, options.seeds.split(",")):
        for difficulty in DIFFICULTIES:
            overrides = f"synthetic.difficulty={difficulty}"
            config = load_config(options.profile, seed=seed, overrides=overrides)
            name = f"teacher-{options.profile}-{difficulty}-{seed}"
            rows += rows_of(Run.open(config, name))
    table = pd.DataFrame(rows)
    write_atomically(project_root() / "runs" / "teacher.csv", partial(table.to_csv, index=False))
    print(
        table.groupby(["difficulty", "components", "merged by"], sort=False)[list(SHOWN)]
        .mean()
        .round(3)
    )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
