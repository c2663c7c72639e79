"""What a notebook reads of a suite: finished runs, else the smallest part of it; and its costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from .config import ConfigError, DataError
from .costs import added_up
from .pipeline import USUAL, stages_of
from .prepare import load_data
from .runs import Run, project_root
from .suites import OURS, SCALED, Sweep

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
        kept: folder of records that stand in where ``runs/`` has none (``umsf report --keep``); for
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
            print(
                f"suite {suite}: records of runs {sweep.prefix}-<seed> in {_shown(sweep.folder)}, "
                f"seeds {', '.join(map(str, seeds))}"
            )
            return replace(sweep, seeds=seeds)
    print(
        f"suite {suite}: no records of runs {sweep.prefix}-<seed>, so this run stands in for them "
        f"with the smallest part; 'umsf sweep --suite {suite} --seeds 0,1,2,3,4' makes all of it"
    )
    smallest = OneRun(run.config, suite, (run.config.seed,), run.folder.name)
    smallest.run()
    return smallest


def _seeds_with_most(sweep: Sweep) -> list[int]:
    """Seeds with most records of a suite; none where kept records are of other settings."""
    start = f"{sweep.prefix}-"
    names = [path.parent.name for path in sweep.folder.glob(f"{start}*/metrics.json")]
    endings = [name.removeprefix(start) for name in names]
    begun = sorted(int(ending) for ending in endings if ending.isdecimal())
    try:
        done = Counter(seed for _, seed, _, _ in replace(sweep, seeds=begun).finished())
    except ConfigError:
        if sweep.records is None:
            raise
        return []
    return [seed for seed in begun if done[seed] == max(done.values(), default=0)]


def _shown(folder: Path) -> str:
    """A folder as seen from the project's, so that no local path stands in a notebook."""
    root = project_root()
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else folder.name


def method_costs(sweep: Sweep, fitted: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """What each method of the base runs has cost, as a mean over the seeds.

    Args:
        sweep: whose manifests tell what each stage has cost.
        fitted: method -> ``costs.measured`` of its work that is in no stage.

    Returns:
        One row per method, the columns of ``costs.added_up``, less those that nothing recorded.
    """
    done = [run.manifest["stages"] for variant, _, run, _ in sweep.finished() if variant == "base"]
    rows = {}
    for name, own in fitted.items():
        parts = [[*(stages.get(s, {}) for s in stages_of(name)), own] for stages in done]
        rows[name] = pd.DataFrame([added_up(each) for each in parts]).mean(skipna=False)
    return pd.DataFrame(rows).T.dropna(axis=1, how="all")
