"""The file of records: tables of it are those of the run folders, and a sweep goes on from it."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import umsf_lib
from umsf_lib.__main__ import main
from umsf_lib.config import ConfigError, DataError, load_config
from umsf_lib.evaluation.stage import load_records
from umsf_lib.experiments import sweep as suites
from umsf_lib.experiments.records import (
    FIELDS,
    RECORDS,
    RunRecord,
    read_records,
    read_run,
    write_records,
)
from umsf_lib.experiments.sweep import SUITES, Sweep
from umsf_lib.experiments.tables import (
    SHOWN,
    keep_records,
    margins,
    markdown,
    score_rows,
    suite_records,
)
from umsf_lib.run import Run

from .test_suites import TINY, fake_run, fakes  # noqa: F401  the fixture

REPORT = ["report", "--profile", "tiny", "--seeds", "0,1"]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept.csv.gz"


def markdown_of(sweep: Sweep) -> str:
    return markdown(sweep, score_rows(sweep), margins(sweep))


def test_scores_counted_again_are_those_that_the_evaluation_wrote(
    tiny_run: Run, kept: Path
) -> None:
    write_records(kept, {"a": dataclasses.replace(read_run(tiny_run.folder), name="a")})
    record = read_records(kept)["a"]
    found, wrote = record.scores(tiny_run.config), load_records([tiny_run.folder])
    pd.testing.assert_frame_equal(found, wrote.assign(run="a"))
    with np.load(tiny_run.path("confusions.npz")) as saved:
        assert len(saved.files) == 3 * len(record.tables)
        for (method, protocol), tables in record.tables.items():
            np.testing.assert_array_equal(tables, saved[f"{method}/{protocol}/test"])
            for matching, name in (("validation", "mapping"), ("named", "named")):
                mapping = record.matchings[method, protocol][matching]
                np.testing.assert_array_equal(mapping, saved[f"{method}/{protocol}/{name}"])
    assert list(record.methods) and set(record.methods) == set(wrote.method)
    stages, costs = tiny_run.manifest["stages"], record.manifest["stages"]
    assert {name: costs[name]["wall_s"] for name in stages} == {
        name: stage["wall_s"] for name, stage in stages.items()
    }
    assert record.manifest["versions"] == tiny_run.manifest["stages"]["evaluate"]["versions"]
    assert record.manifest["version"] == umsf_lib.__version__
    assert record.manifest["config"] == tiny_run.manifest["config"]


def test_tables_of_a_file_are_those_of_the_runs_and_reading_writes_nothing(
    fakes: list[Run],  # noqa: F811
    project: Path,
    kept: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = Sweep(TINY, "first", (0, 1))
    tables, scores = markdown_of(sweep), suite_records(sweep)
    assert main([*REPORT, "--records", str(kept), "--keep"]) == 0
    assert capsys.readouterr().out.strip() == tables.strip()
    assert (project / "runs" / "tiny-easy-first.md").is_file()
    shutil.rmtree(project / "runs")
    before = kept.read_bytes()
    assert main([*REPORT, "--records", str(kept)]) == 0
    assert capsys.readouterr().out.strip() == tables.strip()
    assert not (project / "runs").exists() and kept.read_bytes() == before
    pd.testing.assert_frame_equal(suite_records(dataclasses.replace(sweep, records=kept)), scores)
    other = [*REPORT, "--records", str(kept), "--overrides", "cluster.lr=0.5"]
    assert main(other) == 2
    assert "cluster.lr 0.002 -> 0.5" in capsys.readouterr().err


def test_a_file_stands_in_for_what_there_is_no_run_of(fakes: list[Run], kept: Path) -> None:  # noqa: F811
    sweep = Sweep(TINY, "first", (0, 1), records=kept)
    tables = markdown_of(sweep)
    keep_records(sweep, kept)
    shutil.rmtree(next(run.folder for run in fakes if run.folder.name == "tiny-easy-1-sar"))
    assert markdown_of(sweep) == tables != markdown_of(Sweep(TINY, "first", (0, 1)))


def test_a_runs_rows_are_replaced_and_those_of_others_stay(
    fakes: list[Run],  # noqa: F811
    kept: Path,
) -> None:
    first, second = (Sweep(TINY, "first", (seed,)) for seed in (0, 1))
    keep_records(first, kept)
    keep_records(second, kept)
    keep_records(second, kept)
    rows = pd.read_csv(kept)
    assert list(rows.columns) == FIELDS and not rows.duplicated(FIELDS[:-1]).any()
    assert set(rows.run) == {run.folder.name for run in fakes}
    # run, matching and three scenes: umsf in six, two others in both bases
    assert len(rows) == 6 + 4 * (6 + 2 * 2)
    right = np.stack([np.diag([40, 60])] * 2)  # another evaluation, of fewer scenes
    fake_run(TINY, "tiny-easy-0", {"umsf": right})
    keep_records(first, kept)
    found = read_records(kept)
    assert found["tiny-easy-0"].methods == {"umsf"} and len(found) == 6
    np.testing.assert_array_equal(found["tiny-easy-0"].dense("umsf")[0], right)
    assert "swav" in found["tiny-easy-1"].methods


def test_equal_records_give_equal_bytes(fakes: list[Run], kept: Path, tmp_path: Path) -> None:  # noqa: F811
    found = {run.folder.name: read_run(run.folder) for run in fakes}
    write_records(kept, found)
    (other := tmp_path / "elsewhere" / "other.csv.gz").parent.mkdir()
    write_records(other, dict(reversed(read_records(kept).items())))
    assert other.read_bytes() == kept.read_bytes()
    assert int.from_bytes(kept.read_bytes()[4:8], "little") == 0  # gzip's time stamp


def test_the_order_of_methods_and_the_matching_that_counts_are_kept(kept: Path) -> None:
    tables = {(name, "dense"): np.full((2, 3, 2), number) for number, name in enumerate("zab")}
    last = {"test": np.array([1, -1, 0])}
    matchings = dict.fromkeys(tables, {"validation": np.array([0, 1, -1])} | last)
    matchings["b", "dense"] = last
    manifest = {"config": {"data": "", "layout": "whu-opt-sar"}, "stages": {}}
    write_records(kept, {"one": RunRecord("one", manifest, tables, matchings)})
    record = read_records(kept)["one"]
    assert [method for method, _ in record.tables] == ["z", "a", "b"]
    for number, name in enumerate("zab"):
        found, mapping = record.dense(name)
        assert found.dtype == np.int64 and (found == number).all() and found.shape == (2, 3, 2)
        assert mapping.tolist() == ([1, -1, 0] if name == "b" else [0, 1, -1])
    assert record.manifest == manifest


def test_records_say_nothing_of_where_the_data_lay(
    project: Path, tmp_path: Path, kept: Path
) -> None:
    here = dataclasses.replace(TINY, data=str(tmp_path / "mine" / "tiles"))
    run = fake_run(here, "tiny-tiles-0", {"umsf": np.stack([np.diag([40, 60])] * 3)})
    keep_records(Sweep(here, "first", (0,)), kept)
    assert str(tmp_path) not in gzip.decompress(kept.read_bytes()).decode()
    there = dataclasses.replace(here, data="/elsewhere/tiles")
    with pytest.raises(ConfigError, match=r"data '.*mine/tiles' -> '/elsewhere/tiles'"):
        score_rows(Sweep(there, "first", (0,), records=kept))  # one's own runs come first
    shutil.rmtree(run.folder)
    assert len(score_rows(Sweep(there, "first", (0,), records=kept))) == len(SHOWN)


def test_records_older_than_a_setting_are_read(fakes: list[Run], kept: Path) -> None:  # noqa: F811
    sweep = Sweep(TINY, "first", (0,))
    found = {run.folder.name: read_run(run.folder) for run in fakes}
    del found["tiny-easy-0"].manifest["config"]["cluster"]["teacher_share"]
    write_records(kept, found)
    expected = score_rows(sweep)
    shutil.rmtree(sweep.folder)
    again = dataclasses.replace(sweep, records=kept)
    pd.testing.assert_frame_equal(score_rows(again), expected)
    found["tiny-easy-0"].manifest["config"]["cluster"]["lr"] = 0.5
    write_records(kept, found)  # of other settings: no record of this suite
    assert set(score_rows(again).variant) == {"optical", "sar"}


def test_records_older_than_naming_lack_it_and_say_so(
    project: Path, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fake_run(TINY, "tiny-easy-0", {"umsf": np.stack([np.diag([40, 60])] * 3)}, named=None)
    keep_records(Sweep(TINY, "first", (0,)), kept)
    shutil.rmtree(run.folder)
    record = read_records(kept)["tiny-easy-0"]
    assert list(record.matchings["umsf", "dense"]) == ["validation", "test"]
    report = ["report", "--profile", "tiny", "--seeds", "0", "--records", str(kept)]
    assert main(report) == 0 and "AMI" in capsys.readouterr().out
    assert main([*report, "--matching", "named"]) == 2
    said = capsys.readouterr().err
    assert "have no matching 'named', only validation, test; leave out --matching" in said
    assert said.count("\n") == 1


def test_tables_of_the_first_version_stay_as_they_were_published(
    fakes: list[Run],  # noqa: F811
    kept: Path,
) -> None:
    sweep = Sweep(TINY, "first", (0, 1), records=kept)
    found = {run.folder.name: read_run(run.folder) for run in fakes}
    del found["tiny-easy-0"].manifest["version"]
    write_records(kept, found)
    shutil.rmtree(sweep.folder)
    heads = [line for line in markdown_of(sweep).splitlines() if line.startswith("| method")]
    columns = [[cell.strip() for cell in head.strip("|").split("|")][3:] for head in heads]
    first = ["ACC", "NMI", "ARI", "macro-F1", "mIoU", "ACC matched on test"]
    assert columns == [first, ["ACC", "NMI"]]


def foreign(rows: str) -> bytes:
    return gzip.compress(rows.encode())


HEAD = ",".join(FIELDS) + "\n"
BROKEN = {
    "text": b"run,kind\n",
    "nothing": b"",
    "another table": foreign("variant,method,value\nbase,umsf,0.5\n"),
    "no table": foreign(""),
    "no JSON": foreign(f"{HEAD}a,run,,,,{{oh\n"),
    "a scene without its run": foreign(f'{HEAD}a,scene,umsf,dense,0,"[[1]]"\n'),
    "a scene that is missing": foreign(
        f'{HEAD}a,run,,,,{{}}\na,matching,umsf,dense,,{{}}\na,scene,umsf,dense,1,"[[1]]"\n'
    ),
    "another kind": foreign(
        f"{HEAD}a,run,,,,{{}}\na,matching,m,dense,,{{}}\na,count,m,dense,0,1\n"
    ),
}


@pytest.mark.parametrize("what", [*BROKEN, "half of it", "a folder"])
def test_a_damaged_or_foreign_file_is_refused_in_one_sentence(
    what: str,
    fakes: list[Run],  # noqa: F811
    kept: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if what == "a folder":
        kept.mkdir()
    elif what == "half of it":
        write_records(kept, {run.folder.name: read_run(run.folder) for run in fakes})
        kept.write_bytes(kept.read_bytes()[: kept.stat().st_size // 2])
    else:
        kept.write_bytes(BROKEN[what])
    before = None if kept.is_dir() else kept.read_bytes()
    with pytest.raises(DataError, match="kept.csv.gz holds no records of runs, or is damaged"):
        read_records(kept)
    assert main([*REPORT, "--records", str(kept), "--keep"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert kept.is_dir() or kept.read_bytes() == before


def test_a_sweep_goes_on_from_the_records(
    project: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stages are recorded, not run; what the network of a kept run is needed for is made again."""
    few = {"base": ("umsf", "supervised"), "balance_1": ("umsf",), "sar": ("umsf",)}
    monkeypatch.setitem(SUITES, "few", few)
    table = {"umsf": np.stack([np.diag([40, 60])] * 3)}
    config = {name: suites.vary_config(TINY, name) for name in few}
    for ending, name in (("", "base"), ("-sar", "sar")):
        fake_run(config[name], f"tiny-easy-0{ending}", table)
    sweep = Sweep(TINY, "few", (0,), records=kept)
    keep_records(sweep, kept)
    shutil.rmtree(project / "runs")
    ran, pretrained = [], []

    def pretrain_run(run: Run) -> None:
        pretrained.append(run.folder.name)
        for stage in ("data", "despeckle", "pretrain"):
            run.path(stage).write_text(stage)
            run.stage(stage, lambda stage=stage: [stage], {})  # type: ignore[misc]

    def run_everything(run: Run, names: tuple[str, ...]) -> None:
        ran.append((run.folder.name, tuple(names)))

    monkeypatch.setattr(suites, "pretrain_run", pretrain_run)
    monkeypatch.setattr(suites, "run_everything", run_everything)
    sweep.run()
    assert ran == [("tiny-easy-0-balance_1", ("umsf",))] and pretrained == ["tiny-easy-0"]
    assert capsys.readouterr().out.splitlines() == [
        f"run tiny-easy-0: skipped, {kept} has it with the same settings",
        "run tiny-easy-0-balance_1",
        f"run tiny-easy-0-sar: skipped, {kept} has it with the same settings",
    ]
    names = score_rows(sweep).variant.unique().tolist()
    assert names == ["base", "sar"]  # the base that was pretrained again is no finished run
    ran.clear()
    more = {"base": ("umsf", "kmeans-pixels"), "sar": ("umsf",)}  # a method that is not kept
    monkeypatch.setitem(SUITES, "more", more)
    dataclasses.replace(sweep, suite="more").run()
    assert ran == [("tiny-easy-0", more["base"])]
    ran.clear()
    other = load_config("tiny", overrides="cluster.steps=9")
    shutil.rmtree(project / "runs")
    dataclasses.replace(sweep, config=other).run()
    assert [name for name, _ in ran] == ["tiny-easy-0", "tiny-easy-0-balance_1", "tiny-easy-0-sar"]


def test_the_readmes_records_are_one_small_file() -> None:
    found = read_records(RECORDS)
    assert {name.split("-")[0] for name in found} == {"quick", "land", "supervised"}
    assert sum(name.startswith("quick-sgd-") for name in found) == 183
    assert RECORDS.stat().st_size < 3e6
    assert all(json.dumps(record.manifest["config"]) for record in found.values())
