"""The run folder: atomic writes, stages that skip, the lock, and what refusals say."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import umsf_lib
from umsf_lib import run as runs
from umsf_lib.__main__ import main
from umsf_lib.config import Config, ConfigError, DataError, MissingStageError, load_config
from umsf_lib.notebooks import open_notebook
from umsf_lib.run import (
    MAKERS,
    Run,
    code_digest,
    default_name,
    digest,
    project_root,
    seed_everything,
    sha256_of,
    versions,
    write_arrays,
    write_atomically,
    write_json,
)
from umsf_lib.training.checkpoints import write_state

from .fakes import write_fake

TINY = load_config("tiny")


class Maker:
    """Makes two files of a stage and counts how often."""

    def __init__(self, run: Run, text: str = "result") -> None:
        self.run, self.text, self.calls = run, text, 0

    def __call__(self) -> list[str]:
        self.calls += 1
        write_json(self.run.path("a.json"), self.text)
        write_arrays(self.run.path("deep", "b.npz"), numbers=np.arange(3))
        return ["a.json", "deep/b.npz"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.open(TINY, "mine", tmp_path)


def listing(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


# Files


def test_equal_states_are_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_state(tmp_path / f"{name}.pt", {"x": torch.arange(3)})
    assert sha256_of(tmp_path / "a.pt") == sha256_of(tmp_path / "b.pt")
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True)["x"], torch.arange(3))


def test_write_atomically_shows_the_whole_new_file_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    seen = []

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        seen.append((path.exists(), temporary.parent == path.parent, temporary.suffix))
        temporary.write_text("whole")

    write_atomically(path, write)
    assert seen == [(False, True, ".txt")]
    assert path.read_text() == "whole" and listing(path.parent) == {"file.txt"}
    assert path.stat().st_mode & 0o777 == 0o644


def test_content_reaches_the_disk_before_the_name_does(tmp_path, monkeypatch) -> None:
    path, seen = tmp_path / "file.txt", []

    def fsync(descriptor: int) -> None:
        seen.append((os.fstat(descriptor).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(path, lambda temporary: temporary.write_text("whole"))
    assert seen == [(5, False)]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_file_and_nothing_else(tmp_path: Path, error) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "other.txt", write)
    assert path.read_text() == "old" and listing(tmp_path) == {"file.txt"}


def test_arrays_and_json_come_back(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3), "m/dense/test": np.array([1.5])}
    write_arrays(tmp_path / "x.npz", **arrays)
    with np.load(tmp_path / "x.npz") as saved:
        assert set(saved) == set(arrays)
        for name in arrays:
            np.testing.assert_array_equal(saved[name], arrays[name])
    write_json(tmp_path / "x.json", {"b": [1, None], "a": "é"})
    assert list(json.loads((tmp_path / "x.json").read_text())) == ["b", "a"]
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", object())
    assert json.loads((tmp_path / "x.json").read_text())["a"] == "é"


def test_digests() -> None:
    assert digest({"a": 1, "b": (1, 2)}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5}) != digest({"a": "1.5"})


def test_sha256_is_the_known_one(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "abc") == known


def test_seed_everything_repeats_every_source_of_draws() -> None:
    def draws() -> list[float]:
        generator = seed_everything(5)
        own = torch.rand(1, generator=generator)
        return [random.random(), np.random.rand(), float(torch.rand(1)), float(own)]

    assert draws() == draws()
    seed_everything(2**40)  # more than NumPy's legacy generator takes


def test_project_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UMSF_ROOT", str(tmp_path))
    assert project_root() == tmp_path.resolve()
    monkeypatch.delenv("UMSF_ROOT")
    assert (project_root() / "umsf_lib" / "run.py").is_file()


# Opening


def test_a_new_run_writes_down_what_decides_it(run: Run) -> None:
    assert listing(run.folder) == {"manifest.json", "config.yaml"}
    manifest = json.loads(run.path("manifest.json").read_text())
    assert manifest["run"] == "mine" and manifest["stages"] == {}
    assert set(manifest) == {"run", "version", "config", "stages"}
    saved = yaml.safe_load(run.path("config.yaml").read_text())
    wanted = json.loads(json.dumps(dataclasses.asdict(TINY)))
    # What was found counts; a run may go on elsewhere.
    assert [wanted.pop(key) for key in ("device", "deterministic", "stale")] == [
        "auto",
        False,
        "say",
    ]
    assert saved == manifest["config"] == wanted


def test_runs_are_named_after_what_differs(project: Path) -> None:
    assert default_name(TINY) == "tiny-synthetic-0"
    mine = dataclasses.replace(TINY, data="/x/sentinel_pairs", seed=3)
    assert Run.folder_of(mine) == project / "runs" / "tiny-sentinel_pairs-3"
    assert Run.folder_of(mine, "a") == project / "runs" / "a"


def test_other_settings_are_refused_and_every_difference_is_listed(tmp_path: Path) -> None:
    Run.open(TINY, "mine", tmp_path)
    Run.open(load_config("tiny"), "mine", tmp_path)
    before = (tmp_path / "mine" / "manifest.json").read_text()
    other = load_config("tiny", seed=1, overrides="cluster.balance=0.7 model.fusion=add")
    with pytest.raises(ConfigError) as caught:
        Run.open(other, "mine", tmp_path)
    message = str(caught.value)
    for part in (
        "mine",
        "seed 0 -> 1",
        "cluster.balance 0.1 -> 0.7",
        "model.fusion 'attention' -> 'add'",
        "another run name",
    ):
        assert part in message
    assert (tmp_path / "mine" / "manifest.json").read_text() == before


def test_a_run_from_before_a_setting_existed_has_its_default(tmp_path: Path) -> None:
    path = Run.open(TINY, "mine", tmp_path).path("manifest.json")
    found = json.loads(path.read_text())
    del found["config"]["scenes"], found["config"]["cluster"]["rounds"]
    del found["config"]["supervised"]  # of stages that such a run cannot have
    path.write_text(json.dumps(found))
    assert Run.open(TINY, "mine", tmp_path).config == TINY
    assert TINY.supervised != type(TINY.supervised)()
    for overrides, said in (
        ("scenes.standardise=set", "scenes.standardise 'layout' -> 'set'"),
        ("cluster.rounds=2", "cluster.rounds 1 -> 2"),
    ):
        with pytest.raises(ConfigError, match=said):
            Run.open(load_config("tiny", overrides=overrides), "mine", tmp_path)


# Stages


def test_a_stage_runs_once(run: Run, tmp_path: Path) -> None:
    make = Maker(run)
    assert run.stage("data", make, {"x": 1}) and not run.stage("data", make, {"x": 1})
    again = Run.open(TINY, "mine", tmp_path)  # the next notebook
    assert not again.stage("data", make, {"x": 1}) and make.calls == 1
    expected = {f: sha256_of(run.path(f)) for f in ("a.json", "deep/b.npz")}
    assert again.outputs_of("data") == expected
    entry = json.loads(run.path("manifest.json").read_text())["stages"]["data"]
    assert entry["outputs"] == expected and entry["wall_s"] >= 0 and "git" in entry


def test_a_stage_runs_again_when_its_inputs_change(run: Run) -> None:
    make = Maker(run)
    run.stage("data", make, {"x": 1})
    assert run.stage("data", make, {"x": 2}) and not run.stage("data", make, {"x": 2})
    assert run.stage("data", make, {"x": 1}) and make.calls == 3


@pytest.mark.parametrize("harm", ["edit", "delete", "truncate"])
def test_a_stage_runs_again_when_a_file_of_it_is_harmed(run: Run, harm: str) -> None:
    make = Maker(run)
    run.stage("data", make, {})
    path = run.path("deep", "b.npz")
    whole = path.read_bytes()
    if harm == "delete":
        path.unlink()
    else:
        path.write_bytes(whole[:-1] + (b"?" if harm == "edit" else b""))
    assert not run.is_done("data")
    with pytest.raises(MissingStageError):
        run.outputs_of("data")
    assert run.stage("data", make, {}) and make.calls == 2 and path.read_bytes() == whole


def test_stages_do_not_disturb_each_other(run: Run) -> None:
    run.stage("data", Maker(run), {})
    write_json(run.path("c.json"), 1)
    run.stage("cluster", lambda: ["c.json"], {})
    assert run.is_done("data") and set(run.outputs_of("cluster")) == {"c.json"}


def failing() -> list[str]:
    raise RuntimeError("no luck")


def test_a_stage_records_what_made_it_and_reading_writes_nothing(run: Run, tmp_path) -> None:
    run.stage("data", Maker(run), {})
    entry = json.loads(run.path("manifest.json").read_text())["stages"]["data"]
    assert entry["versions"]["numpy"] == np.__version__ and entry["device"] == str(run.device)
    assert {"git", "code", "wall_s"} <= set(entry)
    before = run.path("manifest.json").stat().st_mtime_ns, listing(run.folder)
    again = Run.open(TINY, "mine", tmp_path)
    assert again.outputs_of("data") and again.is_done("data")
    assert before == (run.path("manifest.json").stat().st_mtime_ns, listing(run.folder))


def test_the_digest_of_code_follows_what_the_code_imports(tmp_path: Path, monkeypatch) -> None:
    """Edit a copy of the library and compare the digests of the packages with those before."""
    copy = tmp_path / "umsf_lib"
    shutil.copytree(Path(runs.__file__).parent, copy)
    monkeypatch.setattr(runs, "__file__", str(copy / "run.py"))
    stages = ("data", "models", "pretraining", "clustering", "evaluation", "maps")

    def changed_by(file: str, old: str, new: str) -> set[str]:
        found = []
        text = (copy / file).read_text()
        assert old in text
        for content in (text, text.replace(old, new, 1)):
            (copy / file).write_text(content)
            code_digest.cache_clear()
            found.append([code_digest(f"umsf_lib.{stage}.stage") for stage in stages])
        (copy / file).write_text(text)
        return {stage for stage, a, b in zip(stages, *found, strict=True) if a != b}

    later = {"pretraining", "clustering", "evaluation", "maps"}
    assert changed_by("pretraining/losses.py", "(q / tau)", "(q / tau / 2)") == later
    assert changed_by("simulation/terrain.py", "numpy as np", "numpy as n2") == {*stages}
    assert changed_by("maps/stage.py", "NODATA = 0", "NODATA = 1") == {"maps"}
    found = changed_by("clustering/stage.py", "PLOT_SCENES = 2000", "PLOT_SCENES = 2001")
    assert found == {"clustering", "evaluation", "maps"}
    assert changed_by("pretraining/losses.py", '"""Contrast', '"""Compare') == set()
    assert changed_by("pretraining/losses.py", "\n\n\n", "\n\n\n# a comment\n") == set()
    code_digest.cache_clear()


def test_what_older_code_made_is_made_again_or_named(run: Run, monkeypatch, capsys) -> None:
    score, training = Maker(run), Maker(run)
    run.stage("evaluate", score, {})
    run.stage("pretrain", training, {}, trains=True)
    monkeypatch.setattr(runs, "code_digest", lambda *modules: "of an edited loss")
    assert run.stage("evaluate", score, {}) and score.calls == 2
    said = "stage 'evaluate' of run 'mine' was made by older code"
    assert said in capsys.readouterr().out
    with pytest.warns(UserWarning, match="stage 'pretrain' of run 'mine'.*is kept; --fresh"):
        assert not run.stage("pretrain", training, {}, trains=True)
    for stale, calls in (("keep", 1), ("fresh", 2)):
        other = Run.open(load_config("tiny", overrides=f"stale={stale}"), "mine", run.folder.parent)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert other.stage("pretrain", training, {}, trains=True) == (stale == "fresh")
        assert training.calls == calls


def test_a_variant_follows_what_the_run_has_made_again(run: Run) -> None:
    make = Maker(run)
    run.stage("data", make, {"x": 1})
    variant = run.variant("wide", ["data"], model={"channels": 64})
    make.text = "made again"
    run.stage("data", make, {"x": 2})
    assert variant.outputs_of("data") != run.outputs_of("data")
    again = run.variant("wide", ["data"], model={"channels": 64})
    assert again.outputs_of("data") == run.outputs_of("data")
    assert json.loads(again.path("a.json").read_text()) == "made again"


def test_a_failing_stage_leaves_no_entry(run: Run, tmp_path: Path) -> None:
    for open_run in (run, Run.open(TINY, "mine", tmp_path)):
        with pytest.raises(RuntimeError):
            open_run.stage("data", failing, {"x": 1})
    assert not run.is_done("data")
    assert json.loads(run.path("manifest.json").read_text())["stages"] == {}
    assert run.stage("data", Maker(run), {"x": 1})  # and no lock


def test_a_stage_that_fails_on_new_inputs_does_not_offer_its_old_result(run, tmp_path) -> None:
    run.stage("data", Maker(run), {"x": 1})
    with pytest.raises(RuntimeError):
        run.stage("data", failing, {"x": 2})
    with pytest.raises(MissingStageError):
        Run.open(TINY, "mine", tmp_path).outputs_of("data")


def test_a_stage_may_not_name_a_file_that_it_did_not_write(run: Run) -> None:
    with pytest.raises(FileNotFoundError):
        run.stage("data", lambda: ["forgotten.json"], {})
    assert not run.is_done("data")


@pytest.mark.parametrize("stage", MAKERS)
def test_a_missing_stage_names_its_notebook(run: Run, stage: str) -> None:
    with pytest.raises(MissingStageError) as caught:
        run.outputs_of(stage)
    for part in ("'mine'", f"'{stage}'", str(run.folder), f"notebooks/{MAKERS[stage]}.ipynb"):
        assert part in str(caught.value)


def test_two_open_notebooks_see_each_others_stages(run: Run, tmp_path: Path) -> None:
    other = Run.open(TINY, "mine", tmp_path)  # opened before the first one has run anything
    run.stage("data", Maker(run), {})
    assert set(other.outputs_of("data")) == {"a.json", "deep/b.npz"}
    write_json(other.path("c.json"), 1)
    other.stage("despeckle", lambda: ["c.json"], {})
    assert run.is_done("despeckle") and run.is_done("data")
    stages = json.loads(run.path("manifest.json").read_text())["stages"]
    assert set(stages) == {"data", "despeckle"}


HOLDER = """
import sys
from pathlib import Path
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_another_process_writes_is_refused_until_it_is_gone(run: Run) -> None:
    command = [sys.executable, "-c", HOLDER, str(run.path(".lock"))]
    root = Path(__file__).parents[1]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": root}
    with subprocess.Popen(command, **pipes, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        make = Maker(run)
        with pytest.raises(DataError) as caught:
            run.stage("data", make, {})
        for part in (str(run.folder), "another process", "'data'", "another run name"):
            assert part in str(caught.value)
        assert make.calls == 0
        other.kill()
    assert run.stage("data", make, {}) and make.calls == 1  # no stale lock


# Notebooks


def notebook(**change: object) -> dict[str, object]:
    """What a notebook's ``globals()`` hold when its setup cell runs."""
    plain = {"profile": "tiny", "run": "", "data": "", "layout": "", "seed": 0, "overrides": ""}
    return plain | {"In": ["", "profile = 'tiny'"], "anything": object()} | change


def test_open_notebook_opens_the_run_and_says_so(project: Path, capsys) -> None:
    torch.manual_seed(99)
    run = open_notebook(notebook(seed=4, overrides="cluster.steps=9"))
    drawn = torch.rand(1)
    seed_everything(4)
    assert drawn == torch.rand(1)
    assert run.folder == project / "runs" / "tiny-synthetic-4" and run.config.cluster.steps == 9
    printed = capsys.readouterr().out
    for part in ("tiny-synthetic-4", "profile tiny", "seed 4", str(run.device), np.__version__):
        assert part in printed


def test_open_notebook_takes_data_from_the_project_root(project: Path, monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)  # where JupyterLab starts must not matter
    run = open_notebook(notebook(data="../mine", layout="pairs"))
    assert run.config == dataclasses.replace(
        TINY, data=str((project.parent / "mine").resolve()), layout="pairs"
    )


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"In": ["", "# Parameters\nsed = 3\n"]}, ["'sed'", "'seed'"]),
        ({"In": ["", '# Parameters\nseed = "3"\n'], "seed": "3"}, ["'seed'", "'3'", "int"]),
        ({"seed": "3"}, ["'seed'", "'3'", "int"]),
        ({"show": "false"}, ["'show'", "'false'", "bool"]),
        ({"profile": "quik"}, ["'quik'", "quick"]),
        ({"overrides": "cluster.balanse=1"}, ["'cluster.balanse'", "'cluster.balance'"]),
    ],
)
def test_open_notebook_refuses_before_anything_is_written(project, change, parts) -> None:
    with pytest.raises(ConfigError) as caught:
        open_notebook(notebook(**change), show=bool)
    for part in parts:
        assert part in str(caught.value)
    assert not project.exists()


def test_config_is_plain_data() -> None:
    config = Config("x")
    assert config.section("seed", "cluster") == {
        "seed": 0,
        "cluster": dataclasses.asdict(config.cluster),
    }
    json.dumps(config.section("views", "model", "pretrain"))


def test_versions_are_those_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "PACKAGES", ("numpy", "no-such-package"))
    assert versions() == {"python": platform.python_version(), "numpy": np.__version__}


@pytest.mark.parametrize("version", [None, "0.1.0", "0.2.0"])
def test_a_run_of_the_version_before_is_refused_in_one_sentence(
    tmp_path: Path, version: str | None
) -> None:
    folder = Run.open(TINY, "mine", tmp_path).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("version") == umsf_lib.__version__
    old = manifest if version is None else manifest | {"version": version}
    write_json(folder / "manifest.json", old)
    with pytest.raises(ConfigError, match=rf"mine was made by umsf {version or '0.1'}, .*run name"):
        Run.open(TINY, "mine", tmp_path)
    assert json.loads((folder / "manifest.json").read_text()) == old


@pytest.mark.parametrize(
    "arguments", [["--data", "typo"], ["--data", ".", "--layout", "no-such-layout"]]
)
def test_a_wrong_folder_or_layout_leaves_no_run(
    project: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of this name would refuse the right folder as other settings."""
    assert main(["map", "--profile", "tiny", *arguments]) == 2
    assert capsys.readouterr().err.startswith("umsf: ") and not (project / "runs").exists()


@pytest.mark.parametrize("content", ["[1]", "null", '{"version": "x.y"}', '{"version": 1}'])
def test_a_manifest_of_something_else_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json cannot be read .*another run name"):
        Run.open(TINY, "mine", tmp_path)


# -- names and places ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a/b", "..", ".", "../x", "a\\b", ".hidden", "C:x", "a\nb", "x ", "a*", "é" * 101, "\ud800"],
)
def test_a_name_that_could_leave_or_hide_a_run_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a run") as caught:
        Run.open(TINY, name, tmp_path / "runs")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["site 2020 (b)", "湖北", "v1.5+x", "é" * 100])
def test_other_names_make_a_folder_right_below_runs(tmp_path: Path, name: str) -> None:
    assert Run.open(TINY, name, tmp_path).folder == tmp_path / name
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_default_name_is_a_good_one_whatever_the_data_are_called() -> None:
    config = dataclasses.replace(TINY, data="/data/a:b\nc")
    assert Run.folder_of(config, root=Path("runs")) == Path("runs", "tiny-a-b-c-0")


def test_a_root_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("UMSF_ROOT", str(tmp_path / "file" / "root"))
    for command in ("synthesize", "map", "sweep", "tutorial"):
        assert main([command, "--profile", "tiny"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "file" in said and "UMSF_ROOT" in said
    assert main(["report", "--profile", "tiny", "--run", "../x"]) == 2
    assert "cannot be the name of a run" in capsys.readouterr().err


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    folder = Run.open(TINY, "mine", tmp_path).folder
    (folder / "manifest.json").write_text('{"run": ')
    with pytest.raises(DataError, match=r"mine.manifest\.json cannot be read .*run name"):
        Run.open(TINY, "mine", tmp_path)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_narrow_output_shows_other_letters_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    write_fake(tmp_path, "pairs", "湖1")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    assert main(["data", "check", str(tmp_path), "--layout", "pairs"]) == 0
    sys.stdout.flush()
    assert b"Scenes: 1 (\\u6e561)" in raw.getvalue()


def test_an_error_stays_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path / "a\nb")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "a\\nb" in said
