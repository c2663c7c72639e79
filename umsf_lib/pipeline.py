"""A whole run without notebooks, and the table of several runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd

from .baselines import BASELINES
from .bench import Bench
from .classify import cluster, feature_tokens, load_clustered, network_classifier
from .config import Config
from .despeckle import train_despeckler
from .inference import Classifier
from .mapping import write_maps
from .metrics import accuracy, confusion, nmi, paired_bootstrap
from .prepare import load_data
from .pretrain import load_pretrained, pretrain
from .report import dense_tables, evaluate, fitted_matching, headline, load_records
from .runs import Run, project_root
from .training import print_progress

SENSORS = ("both", "optical", "sar")


def methods(run: Run, bench: Bench) -> Iterator[Classifier]:
    """The classifiers that a run compares: baselines, clusters of pretrained tokens, ours."""
    for fit in BASELINES.values():
        yield fit(bench)
    pretrained = load_pretrained(run, bench.scenes).to(run.device).eval()
    tokens = bench.reduced(feature_tokens(pretrained, bench, "fused"))
    for kind in ("kmeans", "mixture", "merged"):
        yield bench.cluster(f"{kind}-pretrained", kind, tokens, bench.stride)
    yield network_classifier(load_clustered(run, bench), bench)


def run_everything(run: Run, *, maps: bool = False) -> None:
    """All stages of a run, each skipped when it is up to date.

    Args:
        run: an open run.
        maps: also write the maps of all scenes that are to be mapped.
    """
    scenes = load_data(run)
    train_despeckler(run, scenes, progress=print_progress("despeckle"))
    pretrain(run, scenes, progress=print_progress("pretrain"))
    bench = Bench.of_run(run, scenes)
    cluster(run, bench, progress=print_progress("cluster"))
    evaluate(run, bench, methods(run, bench))
    if maps:
        classifier = network_classifier(load_clustered(run, bench), bench)
        mapping = fitted_matching(run, "umsf")
        write_maps(run, bench, classifier, mapping, scenes.indices("test"))


def run_sweep(config: Config, seeds: Sequence[int]) -> list[Run]:
    """Run ``sensors x seeds``; finished runs are skipped, so it resumes."""
    runs = []
    for seed in seeds:
        for sensors in SENSORS:
            own = replace(config, seed=seed, model=replace(config.model, sensors=sensors))
            run = Run.open(own, f"{config.profile}-{sensors}-{seed}")
            print(f"run {run.folder.name}", flush=True)
            run_everything(run)
            runs.append(run)
    return runs


def first_results(runs: Sequence[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores per method, mean and std over seeds; margins of ours with bootstrap intervals.

    Dense pixels of test scenes, matching fitted on validation scenes. The bootstrap resamples
    the test scenes of each seed, paired, and averages over the seeds.
    """
    table = headline(load_records(run.folder for run in runs))
    chosen = table[(table.protocol == "dense") & table["class"].isna()]
    chosen = chosen.assign(sensors=chosen.variant.str.split("-").str[0])
    ours_or_fused = (chosen.method == "umsf") | (chosen.sensors == "both")
    grouped = chosen[ours_or_fused].groupby(["method", "sensors", "metric"], sort=False).value
    return grouped.agg(["mean", "std"]).reset_index(), margins(runs)


def margins(runs: Sequence[Run]) -> pd.DataFrame:
    """Ours on both sensors minus each other method, in ACC and NMI, with 95 % intervals."""
    others = [(name, "both") for name in BASELINES] + [("umsf", "optical"), ("umsf", "sar")]
    of_seed = {(run.config.seed, run.config.model.sensors): run for run in runs}
    seeds = sorted({run.config.seed for run in runs})
    rows = []
    for name, sensors in others:
        ours = [confusion(*dense_tables(of_seed[seed, "both"], "umsf")) for seed in seeds]
        theirs = [confusion(*dense_tables(of_seed[seed, sensors], name)) for seed in seeds]
        for metric, statistic in (("acc", accuracy), ("nmi", nmi)):
            mean, low, high = paired_bootstrap(ours, theirs, statistic)
            row = {"against": name, "sensors": sensors, "metric": metric, "seeds": len(seeds)}
            rows.append(row | {"scenes": len(ours[0]), "margin": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def print_first_results(config: Config, seeds: Sequence[int]) -> None:
    """Run the sweep, print both tables, write ``runs/first_scores.csv``, ``first_margins.csv``."""
    scores, gains = first_results(run_sweep(config, seeds))
    for name, table in (("first_scores", scores), ("first_margins", gains)):
        table.to_csv(project_root() / "runs" / f"{name}.csv", index=False)
    print(scores.round(3).to_string(index=False))
    print(gains.round(3).to_string(index=False))
