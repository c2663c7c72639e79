"""Make the tables of a suite from the records of its runs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..config import DataError, MissingStageError
from ..data.stage import load_data
from ..evaluation.metrics import Score, accuracy, ami, differences, macro_f1, mean_iou, nmi
from ..evaluation.stage import (
    Counts,
    load_records,
    paired_gain,
    tables_to_score,
)
from ..run import Run, add_up, other_settings, project_root, write_atomically
from ..supervised import CEILING
from .pipeline import stages_of
from .records import is_evaluated, read_records, write_records
from .sweep import CLUSTERS, GROUPS, MATCHINGS, VARIANTS, Sweep, rival

SHOWN = {
    "acc": "ACC",
    "nmi": "NMI",
    "ami": "AMI",
    "ari": "ARI",
    "macro_f1": "macro-F1",
    "miou": "mIoU",
    "classes_found": "classes found",
    "acc_on_test": "ACC matched on test",  # with the best possible matching
}
DIGITS = {"classes_found": ".1f"}  # of a score, where it is not .3f
ENDINGS = {"no_pretraining": ", no pretraining", "epochs_x4": ", 4 x pretraining"}  # of curves
COMPARED: dict[str, Score] = {
    "acc": accuracy,
    "nmi": nmi,
    "ami": ami,
    "macro_f1": macro_f1,
    "miou": mean_iou,
}
# Scores that the published tables of version 0.1 lack, and what their margins have.
NEWER, FIRST_COMPARED = ("ami", "classes_found"), ("acc", "nmi")
Names = tuple[str, str]  # method, variant
Pair = tuple[list[Counts], list[Counts]]  # of UMSF-Net and of its rival, one per seed


def keep_records(sweep: Sweep, path: Path) -> None:
    """Write the records of the suite's runs to a file.

    They replace older records of the same runs; records of other runs are kept.
    """
    found = {record.name: record for _, _, record, _ in sweep.finished()}
    write_records(path, read_records(path) | found)


def suite_records(sweep: Sweep) -> pd.DataFrame:
    """Return the scores of all evaluated runs of a suite as one table.

    If records of version 0.1 are among them, it is without the scores of ``NEWER``.
    """
    found = list(sweep.finished())
    if not found:
        return load_records([])
    every = pd.concat([scores for *_, scores in found], ignore_index=True)
    of_first = any("version" not in record.manifest for _, _, record, _ in found)
    return every[~every.metric.isin(NEWER)] if of_first else every


def score_rows(sweep: Sweep, protocol: str = "dense") -> pd.DataFrame:
    """Compute mean and std over seeds for each method in each variant.

    Scores are of the test scenes, under the matching of ``Sweep.matching_of``. For ``acc_on_test``
    clusters are matched on the test scenes themselves; it is left out where clusters are named,
    since more clusters than classes cannot be matched one to one.

    Returns:
        Columns ``variant, method, metric, mean, std, seeds``.
    """
    keys = ["variant", "method", "metric"]
    every = suite_records(sweep)
    every = every[every["class"].isna() & (every.protocol == protocol)]
    if every.empty:
        return pd.DataFrame(columns=[*keys, "mean", "std", "seeds"])
    matching = sweep.matching_of(set(every.matching))
    best = every[(every.matching == "test") & (every.metric == "acc")].assign(metric="acc_on_test")
    chosen = every[every.matching == matching]
    every = chosen if matching == "named" else pd.concat([chosen, best])
    every = every[every.metric.isin(SHOWN)]
    grouped = every.groupby(keys, sort=False).value
    return grouped.agg(["mean", "std", "count"]).rename(columns={"count": "seeds"}).reset_index()


def scale_rows(sweep: Sweep) -> pd.DataFrame:
    """Return scores by number of training scenes, from the suite ``scale``.

    Returns:
        The columns of ``score_rows``, ``scenes`` (number of training scenes) and ``name`` (of the
        curve); no rows for data other than synthetic scenes.
    """
    table = score_rows(sweep)
    if sweep.config.data:  # only simulated scenes exist in other numbers
        table = table.iloc[:0]
    parts = table.variant.str.split("-")
    usual = {"train": sweep.config.synthetic.train}
    scenes = [VARIANTS[names[0]].get("synthetic", usual)["train"] for names in parts]
    curves = table.method + [ENDINGS.get(names[-1], "") for names in parts]
    return table.assign(scenes=scenes, name=curves).sort_values("scenes", kind="stable")


def class_rows(sweep: Sweep) -> pd.DataFrame:
    """Compute mean F1, IoU and recall over seeds of each class, for each method in each variant.

    Returns:
        Columns ``method, variant, class, f1, iou, recall``, of dense pixels; a class that the test
        scenes lack has no recall.
    """
    keys = ["method", "variant", "class"]
    every = suite_records(sweep).query("protocol == 'dense' and metric in ('f1', 'recall')")
    chosen = every[every.matching == sweep.matching_of(set(every.matching))]
    f1 = chosen[chosen.metric == "f1"]
    iou = f1.assign(metric="iou", value=f1.value / (2 - f1.value))
    every = pd.concat([chosen, iou])
    return every.pivot_table("value", keys, "metric", sort=False).reset_index()


def network_rows(sweep: Sweep) -> pd.DataFrame:
    """Tabulate the networks of a suite that learn from labels: means over seeds.

    Returns:
        A row per network (``optical alone``: the control with one sensor), with columns ``OA``
        (overall accuracy, which is ``acc`` where nothing is matched), ``mIoU``, ``seeds`` and the
        IoU of each class.
    """
    rows, classes = score_rows(sweep), class_rows(sweep)
    scores = rows.assign(network=_networks(rows)).set_index("network")
    table = pd.DataFrame(
        {
            title: scores.loc[scores.metric == metric, column]
            for title, metric, column in (
                ("OA", "acc", "mean"),
                ("mIoU", "miou", "mean"),
                ("seeds", "miou", "seeds"),
            )
        }
    )
    iou = classes.assign(network=_networks(classes)).pivot(
        index="network", columns="class", values="iou"
    )
    return table.join(iou.add_prefix("IoU "))


def sensor_gains(sweep: Sweep) -> pd.DataFrame:
    """Subtract the mIoU of the control that sees optical images alone, seed by seed.

    The control has UPerNet's decoder. For networks with another one, the difference is not what SAR
    alone is worth.

    Returns:
        Columns ``name`` (of the network), ``value`` (mean), ``low`` and ``high`` (of the seeds); no
        rows without that control.
    """
    rows = suite_records(sweep).query("protocol == 'dense' and metric == 'miou'")
    rows = rows[rows.matching == sweep.matching_of(set(rows.matching))]
    rows = rows.assign(name=_networks(rows))
    of_seed = rows.set_index(["name", "seed"]).value.unstack().reindex(rows["name"].unique())
    if "optical alone" not in of_seed.index:
        return pd.DataFrame(columns=["name", "value", "low", "high"])
    gain = of_seed.sub(of_seed.loc["optical alone"]).drop("optical alone").dropna(axis=1)
    ends = {"value": gain.mean(axis=1), "low": gain.min(axis=1), "high": gain.max(axis=1)}
    return pd.DataFrame(ends).reset_index()


def _networks(rows: pd.DataFrame) -> pd.Series:
    """Return the names of supervised networks; a control with one sensor has that as variant."""
    names = rows.method.str.removeprefix("supervised-")
    return names.where(~rows.variant.isin(GROUPS["sensors"]), rows.variant + " alone")


def margins(sweep: Sweep) -> pd.DataFrame:
    """Compute UMSF-Net minus each other method and variant, with 95 % intervals.

    See ``sweep.rival`` for what is compared, and ``Sweep.matching_of`` for the matching. The paired
    bootstrap resamples the test scenes of each seed (or blocks of them, ``Sweep.block``) and
    averages over the seeds that both have finished. Synthetic scenes differ from seed to seed; the
    scenes of a data set do not, so they are resampled once for all seeds. Scores are those of
    ``COMPARED``; the published tables of version 0.1 have ``FIRST_COMPARED``.

    Returns:
        Columns ``variant, method, metric, margin, low, high, ahead, seeds, scenes``; ``ahead`` is
        the number of seeds in which UMSF-Net is better.
    """
    rows, same = [], bool(sweep.config.data)
    compared = COMPARED if "ami" in set(suite_records(sweep).metric) else FIRST_COMPARED
    for (method, variant), seeds, pair in _pairs(sweep):
        for metric in compared:
            statistic = COMPARED[metric]
            gain = paired_gain(*pair, statistic, same_scenes=same, block=sweep.block)
            ahead = int((_each(pair, statistic) > 0).sum())
            scenes = len(pair[0][0][0])
            rows.append((variant, method, metric, *gain, ahead, len(seeds), scenes))
    columns = ["variant", "method", "metric", "margin", "low", "high", "ahead", "seeds", "scenes"]
    return pd.DataFrame(rows, columns=columns)


def seed_margins(sweep: Sweep, metric: str = "acc") -> pd.DataFrame:
    """Compute UMSF-Net minus each other method and variant for each seed.

    Args:
        sweep: the suite whose runs are read.
        metric: a key of ``COMPARED``.

    Returns:
        A table indexed by method and variant, with one column per seed.
    """
    rows = {
        names: dict(zip(seeds, _each(pair, COMPARED[metric]), strict=True))
        for names, seeds, pair in _pairs(sweep)
    }
    return _by_method(rows, "seed")


def _pairs(sweep: Sweep) -> Iterator[tuple[Names, list[int], Pair]]:
    """Yield (method, variant), the seeds it shares with its rival, and the tables of both."""
    tables: dict[Names, dict[int, Counts]] = {}
    for variant, seed, record, scores in sweep.finished():
        for method in scores.method.unique():
            matching = sweep.matching_of(record.matchings[method, "dense"])
            tables.setdefault((method, variant), {})[seed] = record.dense(method, matching)
    for (method, variant), theirs in tables.items():
        ours = tables.get(("umsf", rival(variant, method) or ""), {})
        if seeds := [seed for seed in ours if seed in theirs and ours is not theirs]:
            pair = ([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
            yield (method, variant), seeds, pair


def _each(pair: Pair, statistic: Score) -> np.ndarray:
    """Return the differences between the two sides of ``_pairs``, one per seed."""
    ours, theirs = (tables_to_score(side, statistic) for side in pair)
    return differences(ours, theirs, statistic)


def _by_method(rows: dict[Names, Any], columns: str) -> pd.DataFrame:
    """Make a table indexed by method and variant; ``columns`` is the name of its columns."""
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns=columns)
    table.index = pd.MultiIndex.from_tuples(rows, names=["method", "variant"])
    return table


def scene_rows(sweep: Sweep, metric: str = "acc") -> pd.DataFrame:
    """Compute the score of each test scene, averaged over seeds, with the matching of all scenes.

    Args:
        sweep: the suite whose runs are read.
        metric: a key of ``COMPARED``.

    Returns:
        A table indexed by method and variant, with one column per scene, numbered from 1 in the
        order of the split; empty for synthetic scenes, which differ from seed to seed.

    Raises:
        DataError: the runs were scored on different numbers of scenes.
    """
    statistic = COMPARED[metric]
    rows: dict[Names, list[list[float]]] = {}
    for variant, _, record, scores in sweep.finished() if sweep.config.data else ():
        for method in scores.method.unique():
            counts = record.dense(method, sweep.matching_of(record.matchings[method, "dense"]))
            (tables,) = tables_to_score([counts], statistic)  # one per scene
            scored = [statistic(table) if table.any() else math.nan for table in tables]
            rows.setdefault((method, variant), []).append(scored)
    lengths = sorted({len(scored) for values in rows.values() for scored in values})
    if len(lengths) > 1:
        raise DataError(
            f"The runs {sweep.prefix}-<seed> were scored on different numbers of scenes "
            f"({', '.join(map(str, lengths))}); delete the runs of the older data and run the "
            "sweep again."
        )
    means = {names: np.mean(values, axis=0) for names, values in rows.items()}
    return _by_method(means, "scene").rename(columns=lambda number: number + 1)


def print_report(sweep: Sweep) -> None:
    """Print the tables of a suite in Markdown.

    If ``runs/`` has an evaluated run of the suite, also write them there: scores and margins as
    CSV, everything as Markdown.

    Raises:
        MissingStageError: no run of the suite has been evaluated.
    """
    scores = score_rows(sweep)
    if scores.empty:
        raise MissingStageError(
            f"No run of suite '{sweep.suite}' named {sweep.prefix}-<seed> has scores for seeds "
            f"{', '.join(map(str, sweep.seeds))}; run 'umsf sweep' with the same options first "
            f"(data without labels have none). Looked for in {sweep.folder}{_in_records(sweep)}."
        )
    gains = margins(sweep)
    text = markdown(sweep, scores, gains)
    if any(is_evaluated(sweep.folder / name) for _, _, name, _ in sweep.planned()):
        start = f"{sweep.prefix}-{sweep.suite}"
        for ending, table in (("scores", scores), ("margins", gains)):
            path = sweep.folder / f"{start}-{ending}.csv"
            write_atomically(path, partial(table.to_csv, index=False))
        write_atomically(
            sweep.folder / f"{start}.md", lambda path: path.write_text(text, encoding="utf-8")
        )
    print(text)


def _in_records(sweep: Sweep) -> str:
    """Name the file of records, and how its runs of these names differ."""
    kept = read_records(sweep.records)
    pairs = [(kept[name], config) for _, _, name, config in sweep.planned() if name in kept]
    every = (other_settings(record.manifest["config"], config) for record, config in pairs)
    listed = next(filter(None, every), "")
    other = f", which holds them with other settings ({listed})" if listed else ""
    return f" and {sweep.records}{other}" if sweep.records else ""


def markdown(sweep: Sweep, scores: pd.DataFrame, gains: pd.DataFrame) -> str:
    """Format a suite as in RESULTS.md, from its ``score_rows`` and ``margins``."""
    every = suite_records(sweep)
    every = every[every.protocol == "dense"]
    groups = [name for name in CLUSTERS if len(of_clusters(scores, name))]
    parts = [MATCHINGS[sweep.matching_of(set(every.matching))]] if groups or sweep.matching else []
    title = "F1 / IoU / recall of each class, mean over seeds:"
    learnt = scores.method.isin(CEILING).all()
    of_classes = class_rows(sweep) if groups or learnt else every
    for group in groups:
        tables = [of_clusters(table, group) for table in (every, scores, gains, of_classes)]
        parts += [f"**{CLUSTERS[group]['cluster']['num_clusters']} clusters**"]
        parts += [*_tables(sweep, *tables[:3]), title, _classes_markdown(tables[3])]
    if not groups:
        parts += _tables(sweep, every, scores, gains)
        if learnt:
            parts += [title, _classes_markdown(of_classes)]
        for metric in () if learnt else FIRST_COMPARED:
            if len(scenes := scene_rows(sweep, metric)):
                parts += [f"{SHOWN[metric]} of each test scene, mean over seeds:"]
                parts += [_markdown(scenes.map(_short).reset_index())]
    return "\n\n".join(parts) + "\n"


def of_clusters(table: pd.DataFrame, group: str) -> pd.DataFrame:
    """Select the variants of a key of ``CLUSTERS``, named as if there were no other number."""
    parts = [variant.split("-") for variant in table.variant]
    names = ["-".join(name for name in every if name != group) or "base" for every in parts]
    chosen = np.array([group in every for every in parts], dtype=bool)
    return table.assign(variant=names)[chosen]


def _tables(
    sweep: Sweep, every: pd.DataFrame, scores: pd.DataFrame, gains: pd.DataFrame
) -> list[str]:
    """Format scores, those of a constant predictor, and margins."""
    chosen = every.query("variant == 'base' and metric == 'constant'")
    constant = chosen.groupby("seed").value.first()
    score = f"{_short(constant.mean())} ± {_short(constant.std())}"
    sentence = f"Calling everything the most frequent class has ACC {score}, NMI 0."
    drawn = f"blocks of {sweep.block} neighbouring " if sweep.block > 1 else ""
    between = (
        f"Ours minus each of them, with 95 % intervals over {drawn}test scenes, and in how many "
        "seeds ours is ahead:"
    )
    named = [] if constant.empty else [sentence]
    compared = [between, margins_markdown(gains)] if len(gains) else []
    return [scores_markdown(scores), *named, *compared]


def _classes_markdown(table: pd.DataFrame) -> str:
    """Format the table of ``class_rows``: F1 / IoU / recall, one column per class."""
    f1, iou, recall = (table[metric].map(_short) for metric in ("f1", "iou", "recall"))
    cells = f1 + " / " + iou + " / " + recall
    keys = ["method", "variant"]
    order = pd.MultiIndex.from_frame(table[keys].drop_duplicates())
    wide = table.assign(cell=cells).pivot(index=keys, columns="class", values="cell")
    columns = table["class"].unique()
    return _markdown(wide.reindex(order, columns=columns).fillna("-").reset_index())


def scores_markdown(scores: pd.DataFrame) -> str:
    """Format the table of ``score_rows`` as in RESULTS.md: mean ± std over seeds."""
    forms = scores.metric.map(lambda metric: DIGITS.get(metric, ".3f"))
    means, spreads = (scores[column].combine(forms, _short) for column in ("mean", "std"))
    return _wide(scores, means + " ± " + spreads)


def margins_markdown(gains: pd.DataFrame) -> str:
    """Format the table of ``margins`` as in RESULTS.md: margin (low to high), seeds ahead."""
    ends = gains[["low", "high"]].map(_short)
    middle = gains.margin.map(partial(_short, form="+.3f"))
    seeds = gains.ahead.astype(str) + " of " + gains.seeds.astype(str)
    return _wide(gains, middle + " (" + ends.low + " to " + ends.high + "), " + seeds)


def _short(value: float, form: str = ".3f") -> str:
    """Format three digits without the leading zero; a dash for NaN (the std of one seed)."""
    return "-" if math.isnan(value) else re.sub(r"\b0\.", ".", format(value, form))


def _wide(table: pd.DataFrame, cells: pd.Series) -> str:
    """Format one line per variant and method, with one column of cells per metric of ``SHOWN``."""
    names = ["method", "variant", "seeds"]
    seeds = table.groupby(["variant", "method"]).seeds.transform("max")
    long = table.assign(cell=cells, seeds=seeds)
    metrics = [metric for metric in SHOWN if metric in set(table.metric)]
    order = pd.MultiIndex.from_frame(long[names].drop_duplicates())
    wide = long.pivot(index=names, columns="metric", values="cell").reindex(order, columns=metrics)
    return _markdown(wide.rename(columns=SHOWN).fillna("").reset_index())


def _markdown(table: pd.DataFrame) -> str:
    """Format a table whose cells are texts already."""
    return table.to_markdown(index=False, disable_numparse=True)


def print_sweep(run: Run, suite: str, name: str = "", kept: Sweep | None = None) -> Sweep:
    """Choose the seeds with most records of a suite, or do the smallest part of the suite now.

    Prints which of the two it is. Seeds with fewer records, begun by other suites, are left out, so
    that all rows of a table are means over the same seeds.

    Args:
        run: the notebook's run, with the settings of the suite except for seed and variant.
        suite: a key of ``SUITES``.
        name: name of the suite's runs, as given to ``umsf sweep --run``.
        kept: the same suite of kept records, to use if ``runs/`` has none; for a notebook that
            needs nothing else of a run.

    Returns:
        The suite with the chosen seeds, or its smallest part.

    Raises:
        DataError: the data has no labels.
    """
    if not load_data(run).labelled:
        raise DataError(
            f"{run.config.data} has no labels (layout {run.config.layout}), so methods cannot be "
            "compared by score; notebook 06 shows maps without labels."
        )
    own = Sweep(run.config, suite, (), name)
    for sweep in filter(None, (own, kept)):
        if found := _find_sweep(sweep):
            return found
    print(
        f"suite {suite}: no records of runs {own.prefix}-<seed>, so only the smallest part is "
        f"done now, in this run; 'umsf sweep --suite {suite} --seeds 0,1,2,3,4 --records none' "
        "does all of it"
    )
    smallest = Sweep(run.config, suite, (run.config.seed,), run.folder.name, smallest=True)
    smallest.run()
    return smallest


def _find_sweep(sweep: Sweep) -> Sweep | None:
    """Give a suite the seeds with most records and print which these are; None without records."""
    if not (seeds := _seeds_with_most(sweep)):
        return None
    path, root = sweep.records or sweep.folder, project_root()
    where = path.relative_to(root) if path.is_relative_to(root) else path.name  # no local path
    print(
        f"suite {sweep.suite}: records of runs {sweep.prefix}-<seed> in {where}, "
        f"seeds {', '.join(map(str, seeds))}"
    )
    return replace(sweep, seeds=seeds)


def _seeds_with_most(sweep: Sweep) -> list[int]:
    """Return the seeds with most records of a suite; none if records have other settings."""
    start = f"{sweep.prefix}-"
    first = next(variant for variant, methods in sweep.variants.items() if methods)
    ending = "" if first == "base" else f"-{first}"
    names = {path.parent.name for path in sweep.folder.glob(f"{start}*/metrics.json")}
    names |= set(read_records(sweep.records))
    same = (name for name in names if name.startswith(start) and name.endswith(ending))
    seeds = [name.removeprefix(start).removesuffix(ending) for name in same]
    begun = sorted(int(seed) for seed in seeds if seed.isdecimal())
    done = Counter(seed for _, seed, _, _ in replace(sweep, seeds=begun).finished())
    return [seed for seed in begun if done[seed] == max(done.values(), default=1)]


def method_costs(sweep: Sweep, fitted: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Compute the cost of each method in the base runs, averaged over the seeds.

    Args:
        sweep: the suite, whose manifests have the cost of each stage.
        fitted: method -> cost of its work outside stages, as ``run.measure_cost`` gives it.

    Returns:
        One row per method with the columns of ``run.add_up``, without those never recorded.
    """
    every = sweep.finished()
    done = [record.manifest["stages"] for variant, _, record, _ in every if variant == "base"]
    rows = {}
    for name, own in fitted.items():
        parts = [[*(stages.get(s, {}) for s in stages_of(name)), own] for stages in done]
        rows[name] = pd.DataFrame([add_up(each) for each in parts]).mean(skipna=False)
    return pd.DataFrame(rows).T.dropna(axis=1, how="all")
