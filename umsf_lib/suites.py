"""Suites of runs: what is compared with what, and the tables of it, made from records alone.

One run folder per variant and seed, each with the methods that its suite compares there.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .config import Config, MissingStageError
from .metrics import accuracy, nmi
from .pipeline import METHODS, USUAL, run_everything
from .report import dense_tables, headline, load_records, paired_gain
from .runs import Run, project_root, write_atomically, write_json

# Question -> variant -> section -> values that differ from the profile's.
GROUPS: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "sensors": {
        "optical": {"model": {"sensors": "optical"}},
        "sar": {"model": {"sensors": "sar"}},
    },
    "fusion": {
        "concat": {"model": {"fusion": "concat"}},
        "add": {"model": {"fusion": "add"}},
    },
    "pretraining": {"no_pretraining": {"cluster": {"initial": "random"}}},
    "loss terms": {
        "no_intra": {"pretrain": {"positives": (0.0, 1.0, 0.0)}},
        "no_cross": {"pretrain": {"positives": (1.0, 0.0, 0.0)}},
        "no_fused": {"pretrain": {"fused": 0.0}},
        "no_clustering": {"cluster": {"clustering": 0.0}},
        "no_consistency": {"cluster": {"consistency": 0.0}},
    },
    "teacher": {
        "teacher_kmeans": {"cluster": {"teacher": "kmeans"}},
        "teacher_merged": {"cluster": {"teacher": "merged"}},
    },
    "balance": {
        "balance_0": {"cluster": {"balance": 0.0}},
        "balance_1": {"cluster": {"balance": 1.0}},
    },
    "smoothing": {"no_smoothing": {"cluster": {"smoothing_px": 0.0}}},
    "windows": {
        "windows_32": {"views": {"window_px": 32, "overlap_px": 8}},
        "windows_128": {"views": {"window_px": 128, "overlap_px": 32}},
    },
    # The same land with rare classes less rare: other scenes, so it has scores but no margin.
    "imbalance": {"mild_imbalance": {"synthetic": {"difficulty": "mild"}}},
    # Pooled contrast, seven clusters, clustering loss of weight 1 and no teacher; one phase after
    # the other, where the paper switches the clustering on at a quarter of the epochs.
    "as published": {"as_published": {"pretrain": {"pooled": 1.0}, "cluster": {"num_clusters": 7}}},
}
# How many scenes the network learns from; the others stay the same (see ``prepare.synthesize``).
SIZES = {f"scenes_{count}": {"synthetic": {"train": count}} for count in (4, 16, 32, 64)}
ABLATED = {name: changes for group in GROUPS.values() for name, changes in group.items()}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {"base": {}} | ABLATED | SIZES
OURS: Sequence[str] = ("umsf",)
SCALED: Sequence[str] = ("umsf", "mixture-statistics")
# Suite -> variant -> methods; "base" comes first, the others copy what they share with it.
SUITES: dict[str, dict[str, Sequence[str]]] = {
    "first": {"base": USUAL, "optical": OURS, "sar": OURS},
    "baselines": {"base": tuple(METHODS), "optical": OURS, "sar": OURS, "no_pretraining": OURS},
    "ablations": {name: OURS for name in ("base", *ABLATED)}
    | {"as_published": ("mutual-information",)},
    "scale": {"base": SCALED, "no_pretraining": OURS}
    | {name: SCALED for name in SIZES}
    | {f"{name}-no_pretraining": OURS for name in SIZES},
}
AFTER_PRETRAINING = {"cluster", "baseline", "map"}  # sections that leave it as it is
SHOWN = {"acc": "ACC", "nmi": "NMI", "ari": "ARI", "macro_f1": "macro-F1"}
COMPARED = {"acc": accuracy, "nmi": nmi}


@dataclass(frozen=True)
class Sweep:
    """The runs of one suite.

    Attributes:
        config: of all runs, but for seed and variant.
        suite: a key of ``SUITES``.
        seeds: one run of each variant per seed.
        name: of the runs, before seed and variant.
        records: folder of the run folders that tables are made of; None: ``runs/``.
    """

    config: Config
    suite: str
    seeds: Sequence[int]
    name: str = ""
    records: Path | None = None

    @property
    def prefix(self) -> str:
        """``name``, else profile and data set."""
        config = self.config
        data = Path(config.data).name if config.data else config.synthetic.difficulty
        return self.name or f"{config.profile}-{data}"

    @property
    def variants(self) -> dict[str, Sequence[str]]:
        """Variant -> methods; those of other synthetic scenes where the scenes are synthetic."""
        names = SUITES[self.suite].items()
        return {n: methods for n, methods in names if not (self.config.data and other_scenes(n))}

    def base_name(self, seed: int) -> str:
        """Of the run of a seed that differs in nothing else."""
        return f"{self.prefix}-{seed}"

    def base(self, seed: int) -> Run:
        """The run of that name."""
        return Run.open(replace(self.config, seed=seed), self.base_name(seed))

    def run(self) -> None:
        """Run all that is not finished, base runs first; so it resumes."""
        for seed in self.seeds:
            base = self.base(seed)
            for variant, names in self.variants.items():
                run = _variant(base, variant)
                print(f"run {run.folder.name}", flush=True)
                run_everything(run, names)

    def finished(self) -> Iterator[tuple[str, int, Run, pd.DataFrame]]:
        """Variant, seed, run and records of all that have been evaluated.

        The records are those of the suite's methods; ``variant`` is named as the suite does.
        """
        for seed in self.seeds:
            for variant, names in self.variants.items():
                ending = "" if variant == "base" else f"-{variant}"
                folder = self.records or project_root() / "runs"
                folder /= f"{self.base_name(seed)}{ending}"
                if (folder / "metrics.json").is_file():
                    config = replace(self.config, seed=seed)
                    for part in variant.split("-"):
                        config = config.changed(**VARIANTS[part])
                    found = load_records([folder])
                    found = found[found.method.isin(names)]
                    yield variant, seed, Run.read(config, folder), found.assign(variant=variant)


def other_scenes(variant: str) -> bool:
    """Whether a variant has its own scenes, which nothing pairs with those of ``base``."""
    return any("synthetic" in VARIANTS[part] for part in variant.split("-"))


def _variant(base: Run, variant: str) -> Run:
    """The run of a variant beside ``base``, with a copy of the stages that both share.

    ``a-b`` is the variant b of the variant a.
    """
    if "-" in variant:
        first, variant = variant.split("-")
        base = _variant(base, first)
    changes = VARIANTS[variant]
    if not changes:
        return base
    shared = [] if other_scenes(variant) else ["data", "despeckle"]
    if AFTER_PRETRAINING.issuperset(changes):
        shared.append("pretrain")
    return base.variant(variant, shared, **changes)


def keep_records(sweep: Sweep, folder: Path) -> None:
    """Copy what the tables are made of to ``folder``, one run folder each.

    The copies know their data set by name only: where it lay says nothing elsewhere.
    """
    for _, _, run, _ in sweep.finished():
        for file in ("metrics.json", "confusions.npz"):
            write_atomically(
                folder / run.folder.name / file, partial(shutil.copyfile, run.path(file))
            )
        config = run.manifest["config"]
        named = config | {"data": Path(config["data"]).name}
        write_json(folder / run.folder.name / "manifest.json", run.manifest | {"config": named})


def suite_records(sweep: Sweep) -> pd.DataFrame:
    """Records of all its runs that have been evaluated, as one table."""
    parts = [records for *_, records in sweep.finished()]
    return pd.concat(parts, ignore_index=True) if parts else load_records([])


def score_rows(sweep: Sweep, protocol: str = "dense") -> pd.DataFrame:
    """Mean and std over seeds of each method in each variant.

    Test scenes, matching fitted on validation scenes where there are any.

    Returns:
        Columns ``variant, method, metric, mean, std, seeds``.
    """
    keys = ["variant", "method", "metric"]
    every = headline(suite_records(sweep))
    every = every[every["class"].isna() & every.metric.isin(SHOWN) & (every.protocol == protocol)]
    grouped = every.groupby(keys, sort=False).value
    return grouped.agg(["mean", "std", "count"]).rename(columns={"count": "seeds"}).reset_index()


def scale_rows(sweep: Sweep) -> pd.DataFrame:
    """Scores against the number of training scenes, from the suite ``scale``.

    Returns:
        Columns of ``score_rows``, ``scenes``, and ``name`` of what the row's curve is of; no rows
        for other data than synthetic scenes.
    """
    table = score_rows(sweep)
    if sweep.config.data:  # other numbers of scenes are simulated only
        table = table.iloc[:0]
    parts = table.variant.str.split("-")
    usual = {"train": sweep.config.synthetic.train}
    scenes = [VARIANTS[names[0]].get("synthetic", usual)["train"] for names in parts]
    endings = [", no pretraining" if names[-1] == "no_pretraining" else "" for names in parts]
    return table.assign(scenes=scenes, name=table.method + endings).sort_values(
        "scenes", kind="stable"
    )


def margins(sweep: Sweep) -> pd.DataFrame:
    """Ours minus each other method and variant, with 95 % intervals.

    The bootstrap resamples the test scenes of each seed, paired, and averages over the seeds that
    both have finished.

    Returns:
        Columns ``variant, method, metric, margin, low, high, seeds, scenes``.
    """
    tables: dict[tuple[str, str], dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for variant, seed, run, records in sweep.finished():
        if other_scenes(variant):
            continue
        for name in records.method.unique():
            tables.setdefault((variant, name), {})[seed] = dense_tables(run, name)
    own, rows = tables.pop(("base", "umsf"), {}), []
    for (variant, name), theirs in tables.items():
        seeds = [seed for seed in own if seed in theirs]
        for metric, statistic in COMPARED.items() if seeds else ():
            pair = [[found[seed] for seed in seeds] for found in (own, theirs)]
            row = (variant, name, metric, *paired_gain(pair[0], pair[1], statistic))
            rows.append((*row, len(seeds), len(pair[0][0][0])))
    columns = ["variant", "method", "metric", "margin", "low", "high", "seeds", "scenes"]
    return pd.DataFrame(rows, columns=columns)


def scores_markdown(scores: pd.DataFrame) -> str:
    """The table of ``score_rows`` as the README shows it: mean ± std over seeds."""
    spread = scores[["mean", "std"]].map(_short)
    return _wide(scores.assign(cell=spread["mean"] + " ± " + spread["std"]), SHOWN)


def margins_markdown(gains: pd.DataFrame) -> str:
    """The table of ``margins`` as the README shows it: margin (low to high)."""
    ends = gains[["low", "high"]].map(_short)
    middle = gains.margin.map(partial(_short, form="+.3f"))
    return _wide(gains.assign(cell=middle + " (" + ends.low + " to " + ends.high + ")"), COMPARED)


def markdown(scores: pd.DataFrame, gains: pd.DataFrame) -> str:
    """Both tables."""
    between = "Ours minus each of them, with 95 % intervals over test scenes:"
    return f"{scores_markdown(scores)}\n{between}\n\n{margins_markdown(gains)}"


def _short(value: float, form: str = ".3f") -> str:
    """Three digits without the leading zero; a dash where one seed has no spread."""
    return "-" if math.isnan(value) else format(value, form).replace("0.", ".", 1)


def _wide(table: pd.DataFrame, metrics: Iterable[str]) -> str:
    """One line per variant and method, one column per metric."""
    titles = [SHOWN[metric] for metric in metrics]
    lines = [
        f"| method | variant | seeds | {' | '.join(titles)} |",
        "|---" * (3 + len(titles)) + "|",
    ]
    for (variant, method), rows in table.groupby(["variant", "method"], sort=False):
        cells = rows.set_index("metric").cell.reindex(list(metrics), fill_value="")
        lines.append(f"| {method} | {variant} | {rows.seeds.max()} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def print_report(sweep: Sweep) -> None:
    """Print both tables in Markdown and write them to ``runs/``, as CSV and Markdown.

    Raises:
        MissingStageError: no run of the suite has been evaluated.
    """
    scores, gains = score_rows(sweep), margins(sweep)
    if scores.empty:
        raise MissingStageError(
            f"No run of suite '{sweep.suite}' named {sweep.prefix}-<seed> has scores for seeds "
            f"{', '.join(map(str, sweep.seeds))}; run 'umsf sweep' with the same options first "
            "(data without labels have none)."
        )
    start, text = project_root() / "runs" / f"{sweep.prefix}-{sweep.suite}", markdown(scores, gains)
    for ending, table in (("scores", scores), ("margins", gains)):
        path = start.with_name(f"{start.name}-{ending}.csv")
        write_atomically(path, partial(table.to_csv, index=False))
    write_atomically(start.with_name(f"{start.name}.md"), lambda path: path.write_text(text))
    print(text)
