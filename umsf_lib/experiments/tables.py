"""Make the tables of a suite from the records of its runs."""

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
    "acc_on_test": "ACC matched on test",  # with the best possible matching
}
ENDINGS = {"no_pretraining": ", no pretraining", "epochs_x4": ", 4 x pretraining"}  # of curves
COMPARED = {"acc": accuracy, "nmi": nmi}
# Results of ``RunRecord.dense``, one per seed: of UMSF-Net, and of what it is compared with.
Pair = tuple[list[tuple[np.ndarray, np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]


def keep_records(sweep: Sweep, path: Path) -> None:
    """Write the records of the suite's runs to a file.

    They replace older records of the same runs; records of other runs are kept.
    """
    found = {record.name: record for _, _, record, _ in sweep.finished()}
    write_records(path, read_records(path) | found)


def suite_records(sweep: Sweep) -> pd.DataFrame:
    """Return the scores of all evaluated runs of a suite as one table."""
    parts = [scores for *_, scores in sweep.finished()]
    return pd.concat(parts, ignore_index=True) if parts else load_records([])


def score_rows(sweep: Sweep, protocol: str = "dense") -> pd.DataFrame:
    """Compute mean and std over seeds for each method in each variant.

    Scores are of the test scenes. Clusters are matched to classes on the validation scenes, if
    there are any; for ``acc_on_test`` they are matched on the test scenes themselves.

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
    """Return a sentence with the scores of a constant predictor; empty without base records."""
    every = suite_records(sweep)
    every = every[(every.metric == "constant") & (every.protocol == "dense")]
    found = every[every.variant == "base"].groupby("seed").value.first()
    if found.empty:
        return ""
    score = f"{_short(found.mean())} ± {_short(found.std())}"
    return f"Calling everything the most frequent class has ACC {score}, NMI 0."


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
    endings = [ENDINGS.get(names[-1], "") for names in parts]
    return table.assign(scenes=scenes, name=table.method + endings).sort_values(
        "scenes", kind="stable"
    )


def margins(sweep: Sweep) -> pd.DataFrame:
    """Compute UMSF-Net minus each other method and variant, with 95 % intervals.

    See ``sweep.rival`` for what is compared. The paired bootstrap resamples the test scenes of each
    seed and averages over the seeds that both have finished. Synthetic scenes differ from seed to
    seed; the scenes of a data set do not, so they are resampled once for all seeds.

    Returns:
        Columns ``variant, method, metric, margin, low, high, ahead, seeds, scenes``; ``ahead`` is
        the number of seeds in which UMSF-Net is better.
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
    """Compute UMSF-Net minus each other method and variant for each seed.

    Args:
        sweep: the suite whose runs are read.
        metric: a key of ``COMPARED``.

    Returns:
        A table indexed by method and variant, with one column per seed.
    """
    rows = {
        (name, variant): dict(zip(seeds, _each(pair, COMPARED[metric]), strict=True))
        for (variant, name), seeds, pair in _pairs(sweep)
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns="seed")
    table.index = pd.MultiIndex.from_tuples(rows, names=["method", "variant"])
    return table


def _each(pair: Pair, statistic: Callable[[np.ndarray], float]) -> np.ndarray:
    """Return the differences between the two sides of ``_pairs``, one per seed."""
    return differences(
        tables_to_score(pair[0], statistic), tables_to_score(pair[1], statistic), statistic
    )


def _pairs(sweep: Sweep) -> Iterator[tuple[tuple[str, str], list[int], Pair]]:
    """Yield (variant, method), the seeds it shares with its rival, and the tables of both."""
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
            f"({', '.join(map(str, sorted(counts)))}); delete the runs of the older "
            "data and run the sweep again."
        )
    means = {key: np.mean(values, axis=0) for key, values in rows.items()}
    table = pd.DataFrame.from_dict(means, orient="index")
    table.index = pd.MultiIndex.from_tuples(means, names=["method", "variant"])
    return table.rename(columns=lambda number: number + 1).rename_axis(columns="scene")


def scores_markdown(scores: pd.DataFrame) -> str:
    """Format the table of ``score_rows`` as in RESULTS.md: mean ± std over seeds."""
    spread = scores[["mean", "std"]].map(_short)
    return _wide(scores.assign(cell=spread["mean"] + " ± " + spread["std"]), SHOWN)


def margins_markdown(gains: pd.DataFrame) -> str:
    """Format the table of ``margins`` as in RESULTS.md: margin (low to high), seeds ahead."""
    ends = gains[["low", "high"]].map(_short)
    middle = gains.margin.map(partial(_short, form="+.3f"))
    seeds = gains.ahead.astype(str) + " of " + gains.seeds.astype(str)
    cells = middle + " (" + ends.low + " to " + ends.high + "), " + seeds
    return _wide(gains.assign(cell=cells), COMPARED)


def scenes_markdown(scenes: pd.DataFrame) -> str:
    """Format the table of ``scene_rows``."""
    titles = ["method", "variant", *map(str, scenes.columns)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for names, row in scenes.iterrows():
        cells = [*names, *map(_short, row)]  # type: ignore[misc]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def markdown(sweep: Sweep, scores: pd.DataFrame, gains: pd.DataFrame) -> str:
    """Format a suite as in RESULTS.md, from its ``score_rows`` and ``margins``."""
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
    """Format three digits without the leading zero; a dash for NaN (the std of one seed)."""
    return "-" if math.isnan(value) else format(value, form).replace("0.", ".", 1)


def _wide(table: pd.DataFrame, metrics: Iterable[str]) -> str:
    """Format one line per variant and method, with one column per metric."""
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
        start = sweep.folder / f"{sweep.prefix}-{sweep.suite}"
        for ending, table in (("scores", scores), ("margins", gains)):
            path = start.with_name(f"{start.name}-{ending}.csv")
            write_atomically(path, partial(table.to_csv, index=False))
        write_atomically(start.with_name(f"{start.name}.md"), lambda path: path.write_text(text))
    print(text)


def _in_records(sweep: Sweep) -> str:
    """Name the file of records, and how its runs of these names differ."""
    kept = read_records(sweep.records)
    pairs = [(kept[name], config) for _, _, name, config in sweep.planned() if name in kept]
    every = (other_settings(record.manifest["config"], config) for record, config in pairs)
    listed = next(filter(None, every), "")
    other = f", which holds them with other settings ({listed})" if listed else ""
    return f" and {sweep.records}{other}" if sweep.records else ""


# The part of a suite that is done now if it has no records.
SMALLEST: dict[str, dict[str, Sequence[str]]] = {
    "baselines": {"base": USUAL, "no_pretraining": OURS},
    "ablations": {"base": OURS, "no_pretraining": OURS},
    "scale": {"base": SCALED, "no_pretraining": OURS},
}


class OneRun(Sweep):
    """The smallest part of a suite, with the run ``name`` as its base run."""

    @property
    def variants(self) -> dict[str, Sequence[str]]:
        """Variant -> methods."""
        return SMALLEST[self.suite]

    def base_name(self, seed: int) -> str:
        """Return the name of the run, which does not depend on the seed."""
        return self.name


def print_sweep(run: Run, suite: str, name: str = "", kept: Path | None = None) -> Sweep:
    """Choose the seeds with most records of a suite, or do the smallest part of the suite now.

    Prints which of the two it is. Seeds with fewer records, begun by other suites, are left out, so
    that all rows of a table are means over the same seeds.

    Args:
        run: the notebook's run, with the settings of the suite except for seed and variant.
        suite: a key of ``SMALLEST``.
        name: name of the suite's runs, as given to ``umsf sweep --run``.
        kept: file of records (``umsf report --keep``) to use if ``runs/`` has none; for a notebook
            that needs nothing else of a run.

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
        f"suite {suite}: no records of runs {sweep.prefix}-<seed>, so only the smallest part is "
        f"done now, in this run; 'umsf sweep --suite {suite} --seeds 0,1,2,3,4 --records none' "
        "does all of it"
    )
    smallest = OneRun(run.config, suite, (run.config.seed,), run.folder.name)
    smallest.run()
    return smallest


def _seeds_with_most(sweep: Sweep) -> list[int]:
    """Return the seeds with most records of a suite; none if records have other settings."""
    start = f"{sweep.prefix}-"
    names = {path.parent.name for path in sweep.folder.glob(f"{start}*/metrics.json")}
    names |= set(read_records(sweep.records))
    endings = [name.removeprefix(start) for name in names if name.startswith(start)]
    begun = sorted(int(ending) for ending in endings if ending.isdecimal())
    done = Counter(seed for _, seed, _, _ in replace(sweep, seeds=begun).finished())
    return [seed for seed in begun if done[seed] == max(done.values(), default=1)]


def _show(path: Path) -> str:
    """Shorten a path to one relative to the project, so that notebooks show no local path."""
    root = project_root()
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


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
