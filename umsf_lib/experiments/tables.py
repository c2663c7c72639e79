"""The tables of a suite, made from the records of its runs alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from ..config import DataError, MissingStageError
from ..data.stage import load_data
from ..evaluation.metrics import accuracy, confusion, differences, nmi
from ..evaluation.stage import headline, load_records, paired_gain, tables_to_score
from ..run import Run, add_up, other_settings, project_root, write_atomically
from .pipeline import USUAL, stages_of
from .records import is_evaluated, read_records, write_records
from .sweep import OURS, SCALED, VARIANTS, Sweep, rival

SHOWN = {"acc": "ACC", "nmi": "NMI", "ari": "ARI", "macro_f1": "macro-F1", "miou": "mIoU"} | {
    "acc_on_test": "ACC matched on test",  # what the best matching would give
}
ENDINGS = {"no_pretraining": ", no pretraining", "epochs_x4": ", 4 x pretraining"}  # of curves
COMPARED = {"acc": accuracy, "nmi": nmi}
# What ``RunRecord.dense`` gives, one per seed: of ours, and of what it is compared with.
Pair = tuple[list[tuple[np.ndarray, np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]


def keep_records(sweep: Sweep, path: Path) -> None:
    """Write what the tables read of the suite's runs to a file of records.

    A run's rows replace those that the file has of it; those of other runs stay.
    """
    found = {record.name: record for _, _, record, _ in sweep.finished()}
    write_records(path, read_records(path) | found)


def suite_records(sweep: Sweep) -> pd.DataFrame:
    """Records of all its runs that have been evaluated, as one table."""
    parts = [scores for *_, scores in sweep.finished()]
    return pd.concat(parts, ignore_index=True) if parts else load_records([])


def score_rows(sweep: Sweep, protocol: str = "dense") -> pd.DataFrame:
    """Mean and std over seeds of each method in each variant.

    Test scenes, matching fitted on validation scenes where there are any; ``acc_on_test`` is ACC
    with clusters matched on the test scenes themselves.

    Returns:
        Columns ``variant, method, metric, mean, std, seeds``.
    """
    keys = ["variant", "method", "metric"]
    every = suite_records(sweep)
    every = every[every["class"].isna() & (every.protocol == protocol)]
    best = every[(every.matching == "test") & (every.metric == "acc")].assign(metric="acc_on_test")
    every = pd.concat([headline(every), best])
    every = every[every.metric.isin(SHOWN)]
    grouped = every.groupby(keys, sort=False).value
    return grouped.agg(["mean", "std", "count"]).rename(columns={"count": "seeds"}).reset_index()


def constant_sentence(sweep: Sweep) -> str:
    """What a constant predictor scores on the scenes of the base runs; empty without records."""
    every = suite_records(sweep)
    every = every[(every.metric == "constant") & (every.protocol == "dense")]
    found = every[every.variant == "base"].groupby("seed").value.first()
    if found.empty:
        return ""
    score = f"{_short(found.mean())} ± {_short(found.std())}"
    return f"Calling everything the most frequent class has ACC {score}, NMI 0."


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
    endings = [ENDINGS.get(names[-1], "") for names in parts]
    return table.assign(scenes=scenes, name=table.method + endings).sort_values(
        "scenes", kind="stable"
    )


def margins(sweep: Sweep) -> pd.DataFrame:
    """Ours minus each other method and variant, with 95 % intervals (see ``sweep.rival``).

    The bootstrap resamples the test scenes of each seed, paired, and averages over the seeds that
    both have finished. Synthetic scenes differ from seed to seed; those of a data set do not, and
    are drawn once for all seeds.

    Returns:
        Columns ``variant, method, metric, margin, low, high, ahead, seeds, scenes``; ``ahead``: in
        how many of the seeds ours is.
    """
    rows = []
    for (variant, name), seeds, pair in _pairs(sweep):
        for metric, statistic in COMPARED.items():
            gain = paired_gain(*pair, statistic, same_scenes=bool(sweep.config.data))
            ahead = int((_each(pair, statistic) > 0).sum())
            scenes = len(pair[0][0][0])
            rows.append((variant, name, metric, *gain, ahead, len(seeds), scenes))
    columns = ["variant", "method", "metric", "margin", "low", "high", "ahead", "seeds", "scenes"]
    return pd.DataFrame(rows, columns=columns)


def seed_margins(sweep: Sweep, metric: str = "acc") -> pd.DataFrame:
    """Ours minus each other method and variant, seed by seed.

    Args:
        sweep: whose runs are read.
        metric: a key of ``COMPARED``.

    Returns:
        Indexed by method and variant, one column per seed.
    """
    rows = {
        (name, variant): dict(zip(seeds, _each(pair, COMPARED[metric]), strict=True))
        for (variant, name), seeds, pair in _pairs(sweep)
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns="seed")
    table.index = pd.MultiIndex.from_tuples(rows, names=["method", "variant"])
    return table


def _each(pair: Pair, statistic: Callable[[np.ndarray], float]) -> np.ndarray:
    """The differences of the two sides of ``_pairs``, one per seed."""
    return differences(
        tables_to_score(pair[0], statistic), tables_to_score(pair[1], statistic), statistic
    )


def _pairs(sweep: Sweep) -> Iterator[tuple[tuple[str, str], list[int], Pair]]:
    """Variant and method, the seeds that it shares with its rival, and both sides' tables."""
    tables: dict[tuple[str, str], dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for variant, seed, record, scores in sweep.finished():
        for name in scores.method.unique():
            tables.setdefault((variant, name), {})[seed] = record.dense(name)
    for (variant, name), theirs in tables.items():
        own = tables.get((rival(variant, name) or "", "umsf"), {})
        if seeds := [seed for seed in own if seed in theirs and own is not theirs]:
            pair = ([own[seed] for seed in seeds], [theirs[seed] for seed in seeds])
            yield (variant, name), seeds, pair


def scene_rows(sweep: Sweep, metric: str = "acc") -> pd.DataFrame:
    """Score of each test scene by itself, mean over seeds; the matching is that of all scenes.

    Args:
        sweep: whose runs are read.
        metric: a key of ``COMPARED``.

    Returns:
        Indexed by method and variant, one column per scene, numbered from 1 in the order of the
        split; empty for synthetic scenes, which differ from seed to seed.
    """
    rows: dict[tuple[str, str], list[list[float]]] = {}
    for variant, _, record, scores in sweep.finished() if sweep.config.data else ():
        for name in scores.method.unique():
            found, mapping = record.dense(name)  # (S, K', K)
            found = found if metric == "nmi" else confusion(found, mapping)
            scored = [COMPARED[metric](table) if table.any() else math.nan for table in found]
            rows.setdefault((name, variant), []).append(scored)
    counts = {len(scored) for values in rows.values() for scored in values}
    if len(counts) > 1:
        raise DataError(
            f"The runs {sweep.prefix}-<seed> were scored on different numbers of scenes "
            f"({', '.join(map(str, sorted(counts)))}); delete those of the older data, sweep again."
        )
    means = {key: np.mean(values, axis=0) for key, values in rows.items()}
    table = pd.DataFrame.from_dict(means, orient="index")
    table.index = pd.MultiIndex.from_tuples(means, names=["method", "variant"])
    return table.rename(columns=lambda number: number + 1).rename_axis(columns="scene")


def scores_markdown(scores: pd.DataFrame) -> str:
    """The table of ``score_rows`` as RESULTS.md shows it: mean ± std over seeds."""
    spread = scores[["mean", "std"]].map(_short)
    return _wide(scores.assign(cell=spread["mean"] + " ± " + spread["std"]), SHOWN)


def margins_markdown(gains: pd.DataFrame) -> str:
    """The table of ``margins`` as RESULTS.md shows it: margin (low to high), seeds ahead."""
    ends = gains[["low", "high"]].map(_short)
    middle = gains.margin.map(partial(_short, form="+.3f"))
    seeds = gains.ahead.astype(str) + " of " + gains.seeds.astype(str)
    cells = middle + " (" + ends.low + " to " + ends.high + "), " + seeds
    return _wide(gains.assign(cell=cells), COMPARED)


def scenes_markdown(scenes: pd.DataFrame) -> str:
    """The table of ``scene_rows``."""
    titles = ["method", "variant", *map(str, scenes.columns)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for names, row in scenes.iterrows():
        cells = [*names, *map(_short, row)]  # type: ignore[misc]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def markdown(sweep: Sweep, scores: pd.DataFrame, gains: pd.DataFrame) -> str:
    """A suite as RESULTS.md shows it, from its ``score_rows`` and ``margins``."""
    between = (
        "Ours minus each of them, with 95 % intervals over test scenes, and in how many seeds ours "
        "is ahead:"
    )
    parts = [scores_markdown(scores), constant_sentence(sweep), between, margins_markdown(gains)]
    for metric in COMPARED:
        if len(scenes := scene_rows(sweep, metric)):
            parts += [f"{SHOWN[metric]} of each test scene, mean over seeds:"]
            parts += [scenes_markdown(scenes)]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


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
    """Print the tables in Markdown; those of any run in ``runs/`` are written there, too.

    Scores and margins as CSV, everything as Markdown.

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
        start = sweep.folder / f"{sweep.prefix}-{sweep.suite}"
        for ending, table in (("scores", scores), ("margins", gains)):
            path = start.with_name(f"{start.name}-{ending}.csv")
            write_atomically(path, partial(table.to_csv, index=False))
        write_atomically(start.with_name(f"{start.name}.md"), lambda path: path.write_text(text))
    print(text)


def _in_records(sweep: Sweep) -> str:
    """The file of records, and how its runs of these names differ."""
    kept = read_records(sweep.records)
    pairs = [(kept[name], config) for _, _, name, config in sweep.planned() if name in kept]
    every = (other_settings(record.manifest["config"], config) for record, config in pairs)
    listed = next(filter(None, every), "")
    other = f", which holds them with other settings ({listed})" if listed else ""
    return f" and {sweep.records}{other}" if sweep.records else ""


# What is run of a suite that nobody has run.
SMALLEST: dict[str, dict[str, Sequence[str]]] = {
    "baselines": {"base": USUAL, "no_pretraining": OURS},
    "ablations": {"base": OURS, "no_pretraining": OURS},
    "scale": {"base": SCALED, "no_pretraining": OURS},
}


class OneRun(Sweep):
    """The smallest part of a suite, on the run that is called ``name``."""

    @property
    def variants(self) -> dict[str, Sequence[str]]:
        """Variant -> methods."""
        return SMALLEST[self.suite]

    def base_name(self, seed: int) -> str:
        """The one run, whatever its seed."""
        return self.name


def print_sweep(run: Run, suite: str, name: str = "", kept: Path | None = None) -> Sweep:
    """The seeds with most records of a suite, else its smallest part, run now in ``run``.

    Prints which of both it is. Seeds that other suites have begun are left out: rows of one table
    are means over the same ones.

    Args:
        run: the notebook's, with the settings of the suite but for seed and variant.
        suite: a key of ``SMALLEST``.
        name: of the suite's runs, as ``umsf sweep --run`` took it.
        kept: file of records that stands in where ``runs/`` has none (``umsf report --keep``); for
            a notebook that needs nothing else of a run.

    Raises:
        DataError: the data has no classes to score against.
    """
    if not load_data(run).labelled:
        raise DataError(
            f"{run.config.data} has no labels (layout {run.config.layout}), so methods cannot be "
            "compared by score; notebook 06 shows maps without any."
        )
    for records in (None, kept) if kept else (None,):
        sweep = Sweep(run.config, suite, (), name, records)
        if seeds := _seeds_with_most(sweep):
            where = _show(records or sweep.folder)
            print(
                f"suite {suite}: records of runs {sweep.prefix}-<seed> in {where}, "
                f"seeds {', '.join(map(str, seeds))}"
            )
            return replace(sweep, seeds=seeds)
    print(
        f"suite {suite}: no records of runs {sweep.prefix}-<seed>, so this run stands in for them "
        f"with the smallest part; 'umsf sweep --suite {suite} --seeds 0,1,2,3,4 --records none' "
        "makes all of it"
    )
    smallest = OneRun(run.config, suite, (run.config.seed,), run.folder.name)
    smallest.run()
    return smallest


def _seeds_with_most(sweep: Sweep) -> list[int]:
    """Seeds with most records of a suite; none where kept records are of other settings."""
    start = f"{sweep.prefix}-"
    names = {path.parent.name for path in sweep.folder.glob(f"{start}*/metrics.json")}
    names |= set(read_records(sweep.records))
    endings = [name.removeprefix(start) for name in names if name.startswith(start)]
    begun = sorted(int(ending) for ending in endings if ending.isdecimal())
    done = Counter(seed for _, seed, _, _ in replace(sweep, seeds=begun).finished())
    return [seed for seed in begun if done[seed] == max(done.values(), default=1)]


def _show(path: Path) -> str:
    """A path as seen from the project's folder, so that no local one stands in a notebook."""
    root = project_root()
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def method_costs(sweep: Sweep, fitted: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """What each method of the base runs has cost, as a mean over the seeds.

    Args:
        sweep: whose manifests tell what each stage has cost.
        fitted: method -> ``costs.measured`` of its work that is in no stage.

    Returns:
        One row per method, the columns of ``costs.add_up``, less those that nothing recorded.
    """
    every = sweep.finished()
    done = [record.manifest["stages"] for variant, _, record, _ in every if variant == "base"]
    rows = {}
    for name, own in fitted.items():
        parts = [[*(stages.get(s, {}) for s in stages_of(name)), own] for stages in done]
        rows[name] = pd.DataFrame([add_up(each) for each in parts]).mean(skipna=False)
    return pd.DataFrame(rows).T.dropna(axis=1, how="all")
