"""Suites: every variant is a valid setting, runs share what they can, tables repeat the records."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as oracle

from umsf_lib.__main__ import main
from umsf_lib.clustering.stage import NETWORK
from umsf_lib.config import Config, DataError, MissingStageError, load_config
from umsf_lib.data.layout import load_layout
from umsf_lib.evaluation.metrics import accuracy, confusion, constant_score, hungarian, nmi
from umsf_lib.evaluation.stage import dense_tables, identity, records
from umsf_lib.experiments import sweep as suites
from umsf_lib.experiments.pipeline import METHODS
from umsf_lib.experiments.records import read_run
from umsf_lib.experiments.sweep import (
    CLUSTERS,
    FUSING_METHODS,
    GROUPS,
    LABELLED,
    MATCHINGS,
    PUBLISHED,
    SIZES,
    SUITES,
    VARIANTS,
    Sweep,
    rival,
    vary_config,
)
from umsf_lib.experiments.tables import (
    class_rows,
    keep_records,
    margins,
    markdown,
    of_clusters,
    print_report,
    scale_rows,
    scene_rows,
    score_rows,
    scores_markdown,
    seed_margins,
)
from umsf_lib.run import Run, sha256_of, write_json
from umsf_lib.supervised.networks import Form, FusionNetwork, supervised_network

from ..fakes import write_set

TINY = load_config("tiny")
ROOT = Path(__file__).parents[2]
SAME = ("base", "windows_64", "no_fused", "umsf_small", "components_2")  # as quick


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_one_change_that_the_profile_accepts(name: str) -> None:
    times = {"epochs_x4": ("pretrain", "epochs", 24), "steps_x4": ("cluster", "steps", 600)}
    changes = VARIANTS[name]
    if name in times:  # four times quick's
        section, key, value = times[name]
        changes = {section: {key: value}}
    pairs = [
        f"{section}.{key}={json.dumps(value, separators=(',', ':'))}"
        for section, values in changes.items()
        for key, value in values.items()
    ]
    changed = load_config("quick", overrides=" ".join(pairs))
    plain = load_config("quick")
    sections = {s: dataclasses.replace(getattr(plain, s), **v) for s, v in changes.items()}
    assert vary_config(plain, name) == changed == dataclasses.replace(plain, **sections)
    assert (changed == plain) == (name in SAME)


def test_a_variant_of_the_profiles_own_settings_is_left_out() -> None:
    for profile, size in (("quick", 64), ("standard", 128)):
        left = set(Sweep(load_config(profile), "ablations", (0,)).variants)
        assert set(GROUPS["windows"]) - left == {f"windows_{size}"}
        fused = f"{'no' if profile == 'quick' else 'with'}_fused"
        assert set(GROUPS["loss terms"]) - left == {fused}
    of_16 = load_config("quick", overrides="synthetic.train=16")
    left = set(Sweep(of_16, "scale", (0,)).variants)
    assert {"scenes_4", "scenes_4-no_pretraining", "no_pretraining"} <= left
    assert not {"scenes_16", "scenes_16-no_pretraining"} & left


def test_every_suite_names_known_variants_and_methods_and_begins_with_base() -> None:
    for suite, variants in SUITES.items():
        assert next(iter(variants)) == "base", suite
        assert {part for name in variants for part in name.split("-")} <= set(VARIANTS)
        assert {name for names in variants.values() for name in names} <= set(METHODS)
    assert "no_pretraining" in SUITES["baselines"]
    apart = sum(map(len, (*GROUPS.values(), PUBLISHED, SIZES, LABELLED, CLUSTERS)))
    assert apart == len(VARIANTS) - 1  # none is there twice


def test_the_suite_of_labels_changes_their_share_and_the_start_only() -> None:
    sweep, found = Sweep(TINY, "labels", (0,)), {}
    for variant, _, _, config in sweep.planned():
        found[variant] = (config.supervised.labelled, config.supervised.weights)
        assert dataclasses.replace(config, supervised=TINY.supervised) == TINY
        assert all(rival(variant, name) == "base" for name in sweep.variants[variant])
    assert found == {
        "base": (1, "none"),
        "labelled_5th": (1 / 5, "none"),
        "labelled_20th": (1 / 20, "none"),
        "labelled_20th-start_umsf_small": (1 / 20, "umsf-small"),
    }
    for name in FUSING_METHODS:  # others have no streams to start
        form = Form({"optical": 4, "sar": 1}, 3)
        network = supervised_network(name.removeprefix("supervised-"), form)
        assert isinstance(network, FusionNetwork)


def fake_run(
    config: Config,
    name: str,
    tables: dict[str, np.ndarray],
    named: tuple[int, int] | None = (0, 1),
) -> Run:
    """A run whose evaluation found these tables ``(S, 2, 2)``, cluster i being class i."""
    run, rows, arrays = Run.open(config, name), [], {}
    classes = load_layout(config.layout).classes
    for method, table in tables.items():
        arrays[f"{method}/dense/test"] = table
        arrays[f"{method}/dense/mapping"] = np.array([0, 1])
        mappings = {"validation": np.array([0, 1])}
        if named:
            mappings["named"] = arrays[f"{method}/dense/named"] = np.array(named)
        mappings["test"] = hungarian(table.sum(axis=0))
        rows += records(identity(name, config, method, "dense"), classes, table, mappings)
    np.savez(run.path("confusions.npz"), **arrays)
    write_json(run.path("metrics.json"), rows)
    return run


@pytest.fixture
def fakes(project: Path) -> list[Run]:
    """Two seeds of three variants, three test scenes each; ours on both sensors is better."""
    rng, runs = np.random.default_rng(0), []
    for seed in (0, 1):
        for variant, right in (("", 0.9), ("-optical", 0.6), ("-sar", 0.5)):
            sensors = variant.strip("-") or "both"
            model = dataclasses.replace(TINY.model, sensors=sensors)
            config = dataclasses.replace(TINY, seed=seed, model=model)
            names = {"umsf": right} | ({} if variant else {"kmeans-pixels": 0.4, "swav": 0.5})
            tables = {
                name: np.stack([rng.multinomial(100, [p / 2, (1 - p) / 2, (1 - p) / 2, p / 2])])
                .repeat(3, axis=0)
                .reshape(3, 2, 2)
                + rng.integers(0, 9, (3, 2, 2))
                for name, p in names.items()
            }
            runs.append(fake_run(config, f"tiny-easy-{seed}{variant}", tables))
    return runs


def markdown_of(sweep: Sweep) -> str:
    return markdown(sweep, score_rows(sweep), margins(sweep))


def unpadded(text: str) -> str:
    """Tables without the spaces that line their columns up."""
    return re.sub(" +", " ", text)


def test_scores_are_means_over_seeds_of_the_suites_methods(fakes: list[Run]) -> None:
    table = score_rows(Sweep(TINY, "first", (0, 1))).set_index(["variant", "method", "metric"])
    assert {key[:2] for key in table.index} == {
        ("base", "umsf"),
        ("base", "kmeans-pixels"),  # swav is in these runs, but not in this suite
        ("optical", "umsf"),
        ("sar", "umsf"),
    }
    runs = [run for run in fakes if run.folder.name.endswith("-sar")]
    values = [
        accuracy(confusion(t.sum(axis=0), m)) for t, m in (dense_tables(r, "umsf") for r in runs)
    ]
    row = table.loc[("sar", "umsf", "acc")]
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["std"] == pytest.approx(np.std(values, ddof=1)) and row["seeds"] == 2
    best = table.loc[("sar", "umsf", "acc_on_test")]
    pooled = [dense_tables(run, "umsf")[0].sum(axis=0) for run in runs]
    right = [max(np.trace(p), np.trace(p[::-1])) / p.sum() for p in pooled]  # of both matchings
    assert best["mean"] == pytest.approx(np.mean(right))
    more = score_rows(Sweep(TINY, "baselines", (0, 1)))
    assert "swav" in set(more.method)
    assert score_rows(Sweep(TINY, "first", (0, 1)), "patch").empty  # these have dense pixels only


def test_margins_are_paired_differences(fakes: list[Run]) -> None:
    table = margins(Sweep(TINY, "first", (0, 1))).set_index(["variant", "method", "metric"])
    assert ("base", "umsf", "acc") not in table.index
    of = {run.folder.name: run for run in fakes}

    def pixels(seed: int, method: str) -> tuple[np.ndarray, np.ndarray]:
        """Classes and clusters, one by one."""
        table = dense_tables(of[f"tiny-easy-{seed}"], method)[0].sum(0)
        clusters, classes = (
            np.repeat(index, table.ravel()) for index in ([0, 0, 1, 1], [0, 1] * 2)
        )
        return classes, clusters

    scores: dict[str, Any] = {
        "acc": oracle.accuracy_score,
        "nmi": oracle.normalized_mutual_info_score,
        "ami": oracle.adjusted_mutual_info_score,
        "macro_f1": partial(oracle.f1_score, average="macro"),
        "miou": partial(oracle.jaccard_score, average="macro"),
    }
    assert set(table.index.get_level_values("metric")) == set(scores)
    for metric, score in scores.items():
        row = table.loc[("base", "kmeans-pixels", metric)]
        both = (("umsf", 1), ("kmeans-pixels", -1))
        apart = [sum(sign * score(*pixels(s, name)) for name, sign in both) for s in (0, 1)]
        assert row.low <= row.margin <= row.high and (row.seeds, row.scenes) == (2, 3)
        assert row.margin == pytest.approx(np.mean(apart))
        assert row.ahead == 2
        each = seed_margins(Sweep(TINY, "first", (0, 1)), metric)
        assert each.loc[("kmeans-pixels", "base")].to_dict() == pytest.approx(
            dict(enumerate(apart))
        )


def test_tables_are_made_under_the_matching_that_is_asked_for(project: Path, capsys) -> None:
    """The rival's clusters get each other's names, with which 40 of 100 pixels are right."""
    tables = {"umsf": np.stack([np.diag([40, 60])] * 3)}
    fake_run(TINY, "tiny-easy-0", tables)
    rival = vary_config(TINY, "sar")
    fake_run(rival, "tiny-easy-0-sar", {"umsf": np.full((3, 2, 2), [[30, 20], [20, 30]])}, (1, 0))
    usual, named = (Sweep(TINY, "first", (0,), matching=m) for m in ("", "named"))
    for sweep, right in ((usual, 0.6), (named, 0.4)):
        keys = ["variant", "metric"]
        assert score_rows(sweep).set_index(keys)["mean"]["sar", "acc"] == pytest.approx(right)
        row = margins(sweep).set_index(keys).loc[("sar", "acc")]
        assert (row.margin, row.low) == pytest.approx((1 - right, 1 - right))
        found = class_rows(sweep).set_index(["variant", "class"]).loc["sar", "farmland"]
        assert found.recall == pytest.approx(right)
        # 50 pixels each of farmland and of what is called so, of which `hits` are both
        hits = 50 * right
        assert found.iou == pytest.approx(hits / (100 - hits))
        assert seed_margins(sweep).loc[("umsf", "sar"), 0] == pytest.approx(1 - right)
    assert MATCHINGS["named"] in markdown_of(named) and MATCHINGS["named"] not in markdown_of(usual)
    assert "ACC matched on test" not in markdown_of(named)
    assert main(["report", "--profile", "tiny", "--seeds", "0", "--matching", "majority"]) == 2
    assert "matching 'majority' is unknown; choose one of: validation, " in capsys.readouterr().err


def test_scenes_of_a_block_are_drawn_together(fakes: list[Run], capsys) -> None:
    single, both = (margins(Sweep(TINY, "first", (0,), block=block)) for block in (1, 3))
    np.testing.assert_allclose(single.margin, both.margin)
    assert (single.low < single.high).any()
    assert (both.low == both.high).all()  # of three scenes one block is left
    report = ["report", "--profile", "tiny", "--seeds", "0", "--block"]
    assert main([*report, "3"]) == 0
    assert "intervals over blocks of 3 neighbouring test scenes, and" in capsys.readouterr().out
    assert main([*report, "0"]) == 2
    assert "--block is 0; give the number of scenes" in capsys.readouterr().err


def test_seeds_in_which_ours_is_behind_are_counted(fakes: list[Run]) -> None:
    """Ahead of SAR alone in the first seed, behind in the second: SAR has ours of the first."""
    first, second = (r for r in fakes if r.folder.name.endswith("-sar"))
    names = {"umsf": dense_tables(fakes[0], "umsf")[0]}
    fake_run(dataclasses.replace(second.config, seed=1), second.folder.name, names)
    weaker = {"umsf": dense_tables(first, "umsf")[0]}
    fake_run(dataclasses.replace(TINY, seed=1), "tiny-easy-1", weaker)
    row = margins(Sweep(TINY, "first", (0, 1))).set_index(["variant", "metric"]).loc[("sar", "acc")]
    assert (row.ahead, row.seeds) == (1, 2)
    assert row.margin == pytest.approx(0) and "+.000 (" in markdown_of(Sweep(TINY, "first", (0, 1)))


def test_scenes_of_a_data_set_are_drawn_once_for_all_seeds(fakes: list[Run]) -> None:
    """The same scenes in each seed are no new evidence, so more seeds make no interval narrower."""
    tables = {run.folder.name: dense_tables(run, "umsf")[0] for run in fakes}
    noisy = {"umsf": tables["tiny-easy-0"], "kmeans-pixels": tables["tiny-easy-0-sar"]}
    tiles = dataclasses.replace(TINY, data="x/tiles")
    for seed in (0, 1):
        fake_run(dataclasses.replace(tiles, seed=seed), f"tiny-tiles-{seed}", noisy)
    one, both = (margins(Sweep(tiles, "first", seeds)) for seeds in ((0,), (0, 1)))
    columns = ["margin", "low", "high"]
    np.testing.assert_allclose(one[columns], both[columns])
    assert (one.low < one.high).all()


def test_seeds_that_only_one_side_has_are_left_out(fakes: list[Run]) -> None:
    next(r for r in fakes if r.folder.name == "tiny-easy-1-sar").path("metrics.json").unlink()
    table = margins(Sweep(TINY, "first", (0, 1))).set_index(["variant", "method", "metric"])
    assert table.loc[("sar", "umsf", "acc")].seeds == 1
    assert table.loc[("optical", "umsf", "acc")].seeds == 2


def test_a_constant_predictor_is_named_beside_the_tables(fakes: list[Run]) -> None:
    bases = [run for run in fakes if run.folder.name[-1].isdigit()]
    found = [constant_score(dense_tables(run, "umsf")[0].sum(axis=0)) for run in bases]
    score = f"{np.mean(found):.3f} ± {np.std(found, ddof=1):.3f}".replace("0.", ".")
    expected = f"Calling everything the most frequent class has ACC {score}, NMI 0."
    assert expected in markdown_of(Sweep(TINY, "first", (0, 1))).splitlines()


def test_other_test_scenes_are_compared_among_themselves_only(fakes: list[Run]) -> None:
    config, tables = TINY, {"umsf": np.stack([np.diag([40, 60])] * 3)}
    tables["mixture-statistics"] = np.stack([[[30, 10], [10, 50]]] * 3)
    mild = dataclasses.replace(config.synthetic, difficulty="mild")
    fake_run(dataclasses.replace(config, synthetic=mild), "tiny-easy-0-mild_imbalance", tables)
    sweep = Sweep(TINY, "ablations", (0,))
    assert "mild_imbalance" in set(score_rows(sweep).variant)
    gains = margins(sweep).set_index(["variant", "method", "metric"])
    assert gains.loc[("mild_imbalance", "mixture-statistics", "acc")].margin == pytest.approx(0.2)
    assert ("mild_imbalance", "umsf", "acc") not in gains.index
    assert (
        "mild_imbalance"
        not in Sweep(dataclasses.replace(TINY, data="x"), "ablations", (0,)).variants
    )


def test_scores_against_the_number_of_training_scenes(fakes: list[Run]) -> None:
    right, half = np.stack([np.diag([40, 60])] * 3), np.full((3, 2, 2), 25)
    endings = (("-scenes_4", 4), ("-scenes_64", 64), ("-scenes_64-no_pretraining", 64))
    for ending, count in endings:
        synthetic = dataclasses.replace(TINY.synthetic, train=count)
        config = dataclasses.replace(TINY, synthetic=synthetic)
        if "no_pretraining" in ending:
            config = dataclasses.replace(
                config, cluster=dataclasses.replace(TINY.cluster, initial="random")
            )
        tables = {"umsf": half if "no_pre" in ending else right}
        tables |= {} if "no_pre" in ending else {"mixture-statistics": half}
        fake_run(dataclasses.replace(config, seed=0), f"tiny-easy-0{ending}", tables)
    sweep = Sweep(TINY, "scale", (0, 1))
    rows = scale_rows(sweep)
    assert rows.drop_duplicates("scenes")[["scenes", "name", "seeds"]].values.tolist() == [
        [TINY.synthetic.train, "umsf", 2],
        [4, "umsf", 1],
        [64, "umsf", 1],
    ]
    assert rows.name[rows.scenes == 64].unique().tolist() == [
        "umsf",
        "mixture-statistics",
        "umsf, no pretraining",
    ]
    gains = margins(sweep).set_index(["variant", "method", "metric"]).margin
    ours = accuracy(confusion(dense_tables(fakes[0], "umsf")[0].sum(axis=0), np.array([0, 1])))
    for row in (("scenes_4", "umsf", "acc"), ("scenes_64", "umsf", "acc")):
        assert gains[row] == pytest.approx(ours - 1, abs=0.02)  # base minus it
    for row in (("scenes_64", "mixture-statistics"), ("scenes_64-no_pretraining", "umsf")):
        assert gains[(*row, "acc")] == pytest.approx(0.5)  # ours of 64 scenes minus it
    other = dataclasses.replace(TINY, data="x")
    assert set(Sweep(other, "scale", (0,)).variants) == {"base", "no_pretraining", "epochs_x4"}


def test_the_readme_block_repeats_the_tables(fakes: list[Run], project: Path, capsys) -> None:
    sweep = Sweep(TINY, "first", (0, 1))
    print_report(sweep)
    text, found = capsys.readouterr().out, score_rows(sweep)
    lines = unpadded(text).splitlines()
    one = found[(found.variant == "sar") & (found.metric == "acc")].iloc[0]
    cell = f"{one['mean']:.3f} ± {one['std']:.3f}".replace("0.", ".")
    line = next(line for line in lines if line.startswith("| umsf | sar | 2 | "))
    assert cell in line and line.count("|") == 12
    assert text.count("| +.") == 15  # ours is ahead of all three, in all five scores
    written = project / "runs" / "tiny-easy-first"
    assert written.with_name("tiny-easy-first.md").read_text().strip() == text.strip()
    again = pd.read_csv(written.with_name("tiny-easy-first-margins.csv"))
    pd.testing.assert_frame_equal(again, margins(sweep))


def test_one_seed_has_no_spread_and_no_run_no_table(fakes: list[Run], capsys) -> None:
    sweep = Sweep(TINY, "first", (0,))
    assert " ± - |" in unpadded(markdown_of(sweep))
    with pytest.raises(MissingStageError, match="tiny-easy-<seed> has scores for seeds 7.*sweep"):
        print_report(Sweep(TINY, "first", (7,)))
    assert main(["report", "--profile", "tiny", "--seeds", "0,x"]) == 2
    assert "--seeds is '0,x'" in capsys.readouterr().err


def test_a_sweep_runs_each_variant_once_and_shares_its_stages(project: Path, monkeypatch) -> None:
    few = {"base": ("umsf",), "no_consistency": ("umsf", "kmeans-pixels", "supervised")}
    monkeypatch.setitem(SUITES, "few", few)
    sweep = Sweep(TINY, "few", (3,), "mine")
    sweep.run()
    base, other = (project / "runs" / f"mine-3{end}" for end in ("", "-no_consistency"))
    pretrained = [sorted((run / "checkpoints").glob("step-*.pt"))[-1].name for run in (base, other)]
    assert pretrained[0] == pretrained[1]
    assert sha256_of(base / NETWORK) != sha256_of(other / NETWORK)
    methods = score_rows(sweep).groupby("variant", sort=False).method.unique()
    assert {variant: list(names) for variant, names in methods.items()} == {
        "base": ["umsf"],
        "no_consistency": ["kmeans-pixels", "supervised", "umsf"],
    }
    files = [p for p in (project / "runs").rglob("*") if p.suffix in (".pt", ".npz", ".csv")]
    times = {path: path.stat().st_mtime_ns for path in files}
    sweep.run()
    assert times == {path: path.stat().st_mtime_ns for path in files}


def test_what_changes_the_pretraining_is_pretrained_anew(project: Path, tiny_run: Run) -> None:
    shutil.copytree(tiny_run.folder, project / "runs" / "base")
    base = Run.open(tiny_run.config, "base")
    for name, shared in (("add", False), ("no_fused", False), ("balance_1", True)):
        variant = suites.open_variant(base, name)
        assert variant.is_done("despeckle") and variant.is_done("pretrain") == shared
    more = Run.open(TINY, "base").variant("scenes_4", (), **VARIANTS["scenes_4"])
    ignored = shutil.ignore_patterns("manifest.json")
    shutil.copytree(base.folder, more.folder, dirs_exist_ok=True, ignore=ignored)
    more.manifest["stages"] = base.manifest["stages"]
    more._save()
    more = suites.open_variant(base, "scenes_4-no_pretraining")
    assert more.config.synthetic.train == 4 and more.config.cluster.initial == "random"
    assert more.folder.name == "base-scenes_4-no_pretraining" and more.is_done("pretrain")
    mild = suites.open_variant(base, "mild_imbalance")
    assert mild.config.synthetic.difficulty == "mild" and not mild.manifest["stages"]


LAND = {
    "base": (),
    "clusters_8": ("kmeans-statistics", "umsf"),
    "sar-clusters_8": ("umsf",),
    "clusters_12": ("kmeans-statistics", "umsf"),
    "sar-clusters_12": ("umsf",),
    "standardise_set-clusters_12": ("kmeans-statistics",),
}


def test_real_land_is_pretrained_once_for_all_numbers_of_clusters(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setitem(SUITES, "land", LAND)
    write_set(tmp_path / "tiles")
    options = ["--suite", "land", "--profile", "tiny", "--seeds", "3", "--records", "none"]
    options += ["--data", str(tmp_path / "tiles"), "--layout", "whu-opt-sar", "--block", "2"]
    assert main(["sweep", *options]) == 0
    said = capsys.readouterr().out
    assert said.count("\npretrain 8/8") == 2  # both sensors, SAR alone; statistics need none
    assert [line for line in said.splitlines() if line.startswith("run ")] == [
        f"run tiny-tiles-3-{name}" for name in LAND if name != "base"
    ]
    tables = said[said.index("Each cluster has the class that is most frequent in it on the val") :]
    assert main(["report", *options]) == 0
    again = capsys.readouterr().out
    assert tables.startswith(again.strip())
    first, eight, twelve = again.split("**")[0::2]
    assert again.split("**")[1::2] == ["12 clusters", "8 clusters"]
    for part in (eight, twelve):
        names = [line.split("|")[1:3] for line in unpadded(part).splitlines() if "|" in line]
        rows = [[" kmeans-statistics ", " base "], [" umsf ", " base "], [" umsf ", " sar "]]
        assert [name for name in names if name in rows] == rows + [rows[0], rows[2]] + rows
        head = unpadded(part).splitlines()[2]
        assert " ACC | NMI | AMI | ARI | macro-F1 | mIoU | classes found |" in head
        assert "over blocks of 2 neighbouring test scenes" in part
    of = {k: read_run(project / "runs" / f"tiny-tiles-3-clusters_{k}") for k in (8, 12)}
    for count, record in of.items():
        for method in ("kmeans-statistics", "umsf"):
            tables, mapping = record.dense(method, "named")
            assert tables.shape[1] == len(mapping) == count and (mapping >= 0).all()


def test_the_suite_of_real_land_has_every_comparison_at_each_number() -> None:
    methods = "kmeans-statistics mixture-statistics kmeans-pretrained mixture-pretrained "
    methods += "mutual-information deepcluster swav scan teacher umsf"
    land = Sweep(TINY, "land", (0,)).variants
    assert land.pop("base") == ()
    for count in (8, 12, 16):
        name = f"clusters_{count}"
        assert set(land.pop(name)) == set(methods.split())
        assert vary_config(TINY, name).cluster.num_clusters == count
        for alone in ("optical", "sar", "no_pretraining"):
            assert land.pop(f"{alone}-{name}") == ("umsf",)
            assert rival(f"{alone}-{name}", "umsf") == rival(name, "scan") == name
        statistics = land.pop(f"standardise_set-{name}")  # the layout of TINY says scene
        assert statistics == ("kmeans-statistics", "mixture-statistics")
    assert not land
    only = load_config("tiny", layout="naip", overrides="model.sensors=optical")
    assert {name.split("-")[0] for name in Sweep(only, "land", (0,)).variants} == {
        "base",
        "clusters_8",
        "clusters_12",
        "clusters_16",
        "no_pretraining",
        "standardise_scene",  # of this layout's rule, set, it is known already
    }


def test_a_record_of_another_suite_does_not_count_as_done(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base run is kept, but with none of the methods that see labels."""
    fake_run(TINY, "tiny-easy-0", {"umsf": np.full((2, 2, 2), 20)})
    keep_records(Sweep(TINY, "first", (0,)), tmp_path / "kept.csv.gz")
    shutil.rmtree(project / "runs" / "tiny-easy-0")
    done = []
    monkeypatch.setattr(suites, "run_everything", lambda run, names: done.append(run.folder.name))
    sweep = Sweep(TINY, "supervised", (0,), records=tmp_path / "kept.csv.gz")
    assert list(sweep.finished()) == []
    sweep.run()
    assert done == [f"tiny-easy-0{ending}" for ending in ("", "-optical", "-sar")]


def test_variants_that_a_profile_cannot_have_are_left_out() -> None:
    assert "umsf_small" not in Sweep(TINY, "ablations", (0,)).variants  # of another width
    assert "umsf_small" in Sweep(load_config("quick-sgd"), "ablations", (0,)).variants
    usual, other = (
        Sweep(load_config("tiny", overrides=o), "ablations", (0,)).variants
        for o in ("", "scenes.standardise=set")
    )
    assert "base" in other and "standardise_scene" in other and "standardise_set" not in other
    assert "standardise_set" in usual and "standardise_scene" not in usual  # the layout's own
    larger = load_config("tiny", overrides="supervised.backbone=resnet18")
    of_small, of_larger = (Sweep(c, "labels", (0,)).variants for c in (TINY, larger))
    assert of_small.keys() - of_larger.keys() == {"labelled_20th-start_umsf_small"}


def test_ablations_on_real_land_share_runs_with_its_tables_and_have_their_rival() -> None:
    land, ablations = (set(Sweep(TINY, s, (0,)).variants) for s in ("land", "land-ablations"))
    ours = {n for n in land if n.endswith("clusters_12") and not n.startswith("standardise")}
    assert {"base", *ours} <= ablations and "clusters_12-components_2" in ablations
    assert {rival(name, "umsf") for name in ablations - {"base"}} == {"clusters_12"}
    merged = vary_config(TINY, "clusters_12-components_2").cluster
    assert (merged.num_clusters, merged.components) == (12, 2)
    table = pd.DataFrame({"variant": ["clusters_12", "sar-clusters_12", "clusters_8", "sar"]})
    named = pd.DataFrame({"variant": ["clusters_12-components_2", "clusters_12"]})
    assert list(of_clusters(table, "clusters_12").variant) == ["base", "sar"]
    assert list(of_clusters(named, "clusters_12").variant) == ["components_2", "base"]


def test_land_without_validation_scenes_is_matched_on_the_test_scenes(project: Path) -> None:
    config = vary_config(TINY, "clusters_8")
    run = fake_run(config, "tiny-easy-0-clusters_8", {"umsf": np.full((2, 2, 2), 20)}, None)
    rows = json.loads(run.path("metrics.json").read_text())
    write_json(run.path("metrics.json"), [r for r in rows if r["matching"] != "validation"])
    sweep = Sweep(TINY, "land", (0,))
    assert MATCHINGS["test"] in markdown_of(sweep)
    assert "ACC matched on test" in markdown_of(sweep)


def test_numbers_of_ten_and_more_keep_their_zero() -> None:
    found = {"method": "umsf", "variant": "base", "seeds": 2, "metric": "classes_found"}
    text = scores_markdown(pd.DataFrame([found | {"mean": 10.0, "std": 0.5}]))
    assert "| 10.0 ± .5" in text


def test_seeds_of_other_scenes_have_no_common_table(project: Path) -> None:
    tiles = dataclasses.replace(TINY, data="x/tiles")
    for seed, count in ((0, 2), (1, 3)):
        tables = {"umsf": np.stack([np.diag([40, 60])] * count)}
        fake_run(dataclasses.replace(tiles, seed=seed), f"tiny-tiles-{seed}", tables)
    with pytest.raises(DataError, match=r"different numbers of scenes \(2, 3\)"):
        scene_rows(Sweep(tiles, "first", (0, 1)))


def test_each_scene_of_a_data_set_is_scored_under_the_matching_of_all(project: Path) -> None:
    tiles = dataclasses.replace(TINY, data="x/tiles")
    right = np.array([[[40, 0], [0, 60]], [[30, 20], [0, 50]], [[0, 0], [0, 0]]])
    wrong = right[:, ::-1]  # of another seed, all pixels in the other cluster
    for seed, tables in ((0, right), (1, wrong)):
        fake_run(dataclasses.replace(tiles, seed=seed), f"tiny-tiles-{seed}", {"umsf": tables})
    sweep = Sweep(tiles, "first", (0, 1))
    row = scene_rows(sweep).loc[("umsf", "base")]
    assert row.loc[1] == pytest.approx((1.0 + 0.0) / 2)
    assert row.loc[2] == pytest.approx((0.8 + 0.2) / 2)
    row = scene_rows(sweep, "nmi").loc[("umsf", "base")]
    assert row.loc[[1, 2]].tolist() == pytest.approx([1.0, nmi(right[1])])
    assert np.isnan(row.loc[3])  # a scene without labels
    assert "| umsf | base | .500 | .500 | - |" in unpadded(markdown_of(sweep))
    assert scene_rows(Sweep(TINY, "first", (0, 1))).empty


RESULTS = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
MARK = "<!-- umsf report"
KEPT_TABLES = re.findall(r"<!-- umsf (report .*?) -->\n\n(.*?)\n<!-- end -->", RESULTS, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "block"), KEPT_TABLES)
def test_the_tables_of_the_results_are_made_of_the_kept_records(
    command: str, block: str, project: Path, capsys
) -> None:
    arguments = [str(ROOT / word) if "/" in word else word for word in shlex.split(command)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == block.strip()


def test_every_suite_of_the_results_has_its_tables() -> None:
    assert len(KEPT_TABLES) == RESULTS.count(MARK) == 11


def test_the_six_rows_of_the_readme_are_those_of_the_results() -> None:
    """ACC, AMI and macro-F1 of the Sentinel pairs, ACC and mIoU of OMBRIA, with 12 clusters."""
    rows = {
        "k-means on statistics": ("kmeans-statistics", "base"),
        "SwAV, the best learned baseline": ("swav", "base"),
        "Gaussian mixture on statistics": ("mixture-statistics", "base"),
        "Gaussian mixture on pretrained tokens": ("mixture-pretrained", "base"),
        "**UMSF-Net**": ("umsf", "base"),
        "UMSF-Net without pretraining": ("umsf", "no_pretraining"),
    }

    def cells(line: str) -> list[str]:
        return [cell.strip() for cell in line.strip("|").split("|")]

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.split("ACC, OMBRIA")[1].split("\n\n")[0].splitlines()[2:]
    assert [cells(line)[0] for line in shown] == list(rows)
    expected: dict[str, list[str]] = {name: [] for name in rows}
    for data, wanted in (
        ("sentinel_pairs", ("ACC", "AMI", "macro-F1")),
        ("ombria", ("ACC", "mIoU")),
    ):
        which = f"--suite land --seeds .* --data {data} "
        (block,) = (block for command, block in KEPT_TABLES if re.search(which, command))
        lines = block.split("**12 clusters**\n\n")[1].split("\n\n")[0].splitlines()
        titles, table = cells(lines[0]), [cells(line) for line in lines[2:]]
        for name, row in rows.items():
            (found,) = (line for line in table if tuple(line[:2]) == row)
            expected[name] += [found[titles.index(title)].split()[0] for title in wanted]
    assert {cells(line)[0]: cells(line)[1:] for line in shown} == expected


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8000
