"""What notebooks read of suites: which runs count, and what their methods have cost."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from umsf_lib.config import DataError, load_config
from umsf_lib.experiments import tables as comparison
from umsf_lib.experiments.pipeline import METHODS, USUAL, stages_of
from umsf_lib.experiments.records import read_run, write_records
from umsf_lib.experiments.sweep import SUITES, Sweep, vary_config
from umsf_lib.experiments.tables import method_costs, print_sweep
from umsf_lib.run import STATUS, Run, add_up, measure_cost

from .test_suites import fake_run

TINY = load_config("tiny")
TABLE = np.array([[[5, 1], [2, 6]]] * 2)


def run_with(name: str, stages: Mapping[str, Any], seed: int = 0) -> Run:
    run = fake_run(load_config("tiny", seed=seed), name, {"umsf": TABLE})
    run.manifest["stages"] = dict(stages)
    run._save()
    return run


@pytest.mark.skipif(not STATUS.is_file(), reason="only Linux tells a process's peak memory")
def test_the_peak_is_that_of_what_happens_inside() -> None:
    np.ones(60_000_000)  # 480 MB, gone before the measurement
    with measure_cost() as little:
        pass
    with measure_cost() as much:
        np.ones(25_000_000)
    assert 0.15 < much["peak_gb"] - little["peak_gb"] < 0.25
    assert 0 <= little["wall_s"] <= much["wall_s"]


def test_seconds_add_up_and_the_largest_peak_counts() -> None:
    parts = [{"wall_s": 2.0, "peak_gb": 1.5, "git": "x"}, {"wall_s": 3.0, "peak_gb": 0.5}]
    found = add_up(parts)
    assert (found["wall_s"], found["peak_gb"]) == (5.0, 1.5) and np.isnan(found["peak_gpu_gb"])
    assert np.isnan(add_up([*parts, {"wall_s": 1.0}])["peak_gb"])  # an old record has none


def test_stages_of_a_method_are_those_that_its_network_has_seen() -> None:
    assert stages_of("kmeans-pixels") == stages_of("mixture-statistics") == ()
    assert stages_of("kmeans-random") == ("despeckle",)
    assert stages_of("merged-pretrained") == ("despeckle", "pretrain")
    assert stages_of("scan") == ("despeckle", "pretrain", "scan")
    assert stages_of("supervised") == ("despeckle", "supervised")
    assert stages_of("umsf") == ("despeckle", "pretrain", "cluster")


def test_costs_are_means_over_seeds_of_stages_and_own_work(project: Path) -> None:
    for seed, factor in ((0, 1.0), (1, 3.0)):
        stages = {
            name: {"wall_s": factor * seconds, "peak_gb": factor, "outputs": {}}
            for name, seconds in {"despeckle": 1.0, "pretrain": 10.0, "cluster": 100.0}.items()
        }
        run_with(f"tiny-easy-{seed}", stages, seed)
    fitted = {"umsf": {"wall_s": 0.5, "peak_gb": 2.0}, "kmeans-pixels": {"wall_s": 7.0}}
    table = method_costs(Sweep(TINY, "first", (0, 1)), fitted)
    assert table.loc["umsf"].to_dict() == {"wall_s": 222.5, "peak_gb": 2.5}
    assert table.loc["kmeans-pixels", "wall_s"] == 7.0
    assert np.isnan(table.loc["kmeans-pixels", "peak_gb"])


def labelled(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    found = SimpleNamespace(labelled=answer)
    monkeypatch.setattr(comparison, "load_data", lambda run: found)


def test_a_notebook_reads_the_seeds_that_have_records(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled(monkeypatch, True)
    names = {"tiny-easy-10": 10, "tiny-easy-2": 2, "tiny-easy-3-sar": 3, "mine-5": 5}
    for name, seed in (names | {"tiny-synthetic-7": 7}).items():
        run_with(name, {}, seed)
    run = Run.open(load_config("tiny", seed=4), "own")
    sweep = print_sweep(run, "baselines")
    assert sweep.seeds == [2, 10] and sweep.variants == SUITES["baselines"]
    assert "runs tiny-easy-<seed> in runs, seeds 2, 10" in capsys.readouterr().out
    assert print_sweep(run, "ablations", "mine").seeds == [5]
    done = [("base", 2, run, None), ("base", 10, run, None), ("sar", 10, run, None)]
    monkeypatch.setattr(Sweep, "finished", lambda self: iter(done))
    assert print_sweep(run, "ablations").seeds == [10]  # seed 2 has run for another suite only
    assert "seeds 10\n" in capsys.readouterr().out


def test_kept_records_stand_in_where_there_are_no_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled(monkeypatch, True)
    path, here = project / "kept.csv.gz", load_config("tiny", seed=4)
    made = run_with("tiny-easy-3", {}, 3)
    write_records(path, {"tiny-easy-3": read_run(made.folder)})
    kept = Sweep(load_config("tiny"), "ablations", (), records=path)
    shutil.rmtree(made.folder)
    run = Run.open(here, "own")
    sweep = print_sweep(run, "ablations", kept=kept)
    assert sweep.seeds == [3] and sweep.records == path
    assert "runs tiny-easy-<seed> in kept.csv.gz, seeds 3\n" in capsys.readouterr().out
    ran: list[Sweep] = []
    monkeypatch.setattr(Sweep, "run", lambda self: ran.append(self))
    other = Run.open(load_config("tiny", seed=4, overrides="cluster.balance=0.3"), "other")
    assert print_sweep(other, "ablations", kept=kept).seeds == [3]  # with their own settings
    assert print_sweep(other, "ablations").smallest and len(ran) == 1
    run_with("tiny-easy-9", {}, 9)
    assert print_sweep(run, "ablations", kept=kept).seeds == [9]  # one's own come first


def test_without_records_the_smallest_part_runs_in_the_notebooks_own_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled(monkeypatch, True)
    ran: list[Sweep] = []
    monkeypatch.setattr(Sweep, "run", lambda self: ran.append(self))
    run = Run.open(load_config("tiny", seed=4), "own")
    sweep = print_sweep(run, "ablations")
    assert ran == [sweep] and sweep.smallest and list(sweep.seeds) == [4]
    assert sweep.base(4).folder == run.folder
    assert sweep.variants == {"base": ("umsf",), "no_pretraining": ("umsf",)}
    assert [name for _, _, name, _ in sweep.planned()] == ["own", "own-no_pretraining"]
    assert "'umsf sweep --suite ablations" in capsys.readouterr().out
    labelled(monkeypatch, False)
    with pytest.raises(DataError, match="no labels .*notebook 06"):
        print_sweep(run, "ablations")


def test_the_smallest_parts_are_parts_of_their_suites() -> None:
    for suite in SUITES:
        whole, part = (Sweep(TINY, suite, (0,), smallest=smallest) for smallest in (False, True))
        assert list(part.variants)[0] == "base"
        for variant, names in part.variants.items():
            assert names or (variant == "base" and "clusters_12" in whole.variants)  # only shared
            assert set(names) <= set(whole.variants[variant]) <= set(METHODS)
    assert Sweep(TINY, "baselines", (0,), smallest=True).variants["base"] == USUAL
    land = Sweep(TINY, "land", (0,), smallest=True).variants
    assert list(land) == ["base", "clusters_12"] and "umsf" in land["clusters_12"]


def test_a_suite_without_scores_of_its_base_has_the_seeds_of_its_first_variant(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled(monkeypatch, True)
    for seed in (3, 5):
        config = vary_config(load_config("tiny", seed=seed), "clusters_12")
        fake_run(config, f"tiny-easy-{seed}-clusters_12", {"umsf": TABLE})
    run_with("tiny-easy-4", {}, 4)  # of another suite
    assert print_sweep(Run.open(TINY, "own"), "land").seeds == [3, 5]
