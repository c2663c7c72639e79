"""Commands: what each one prints last, and the settings that a notebook takes from its run."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio import Affine

from umsf_lib import __version__
from umsf_lib.__main__ import main
from umsf_lib.config import load_config
from umsf_lib.experiments import pipeline
from umsf_lib.experiments.sweep import SUITES
from umsf_lib.maps import stage as maps_stage
from umsf_lib.maps.stage import Legend
from umsf_lib.run import SAMPLES, Run

from .fakes import DEGREES, write_fake, write_set

MISSING = (
    "umsf: There is no run 'nope' in {}; make it with 'umsf map', or choose another run name.\n"
)


def last_line(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_map_says_every_phase_then_where_the_maps_are(
    tiny_run: Run, project: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(tiny_run.folder.parents[1], project)
    path = project / "runs" / tiny_run.folder.name / "manifest.json"
    manifest = json.loads(path.read_text())
    for stage in ("cluster", "evaluate", "maps"):
        del manifest["stages"][stage]
    path.write_text(json.dumps(manifest))
    capsys.readouterr()
    assert main(["map", "--profile", "tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"run: {path.parent}; loading torch"
    begins = [line.removesuffix(" 0/" + line.rpartition("/")[2]) for line in lines if " 0/" in line]
    assert begins == [
        "data: check",
        "data: prepare",
        "cluster: draw tokens",
        "cluster: restarts of the mixture",
        "cluster: posteriors of the teacher",
        "cluster: smooth the teacher",
        "cluster",
        "cluster: merge components",
        "cluster: features of test scenes",
        "evaluate: fit methods",
        "evaluate: score scenes",
        "maps: scenes",
    ]
    browser = f"umsf notebook 12_results_browser --run {tiny_run.folder.name}"
    assert lines[-1] == f"maps: {path.parent / 'maps'}; next: {browser}"


def test_map_says_how_many_unnamed_clusters_and_what_their_colours_mean(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path / "data", "pairs")
    legend = Legend((), np.zeros(0), "blue (1 of 9 clusters): wet")
    monkeypatch.setattr(pipeline, "run_everything", lambda *_, **__: None)
    monkeypatch.setattr(maps_stage, "load_legend", lambda _: legend)
    command = ["map", "--profile", "tiny", "--data", str(tmp_path / "data"), "--layout", "pairs"]
    other = 'for another number add --run NAME --overrides "cluster.num_clusters=N"'
    for count, given in ((12, []), (9, ["--run", "m", "--overrides", "cluster.num_clusters=9"])):
        assert main(command + given) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[1] == f"clusters: {count}, without names, as the layout has none; {other}"
        assert lines[2] == "colours: blue (1 of 9 clusters): wet"


@pytest.mark.parametrize("name", ["whu-opt-sar", "naip"])
def test_check_ends_with_the_command_that_maps_the_folder(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    data = tmp_path / "two words"
    write_set(data, name) if name == "whu-opt-sar" else write_fake(data, name, "1")
    assert main(["data", "check", str(data), "--layout", name]) == 0
    said, _, command = last_line(capsys).partition("; next: ")
    assert said == f"checked: {data}"
    optical = ["--overrides", "model.sensors=optical"] if name == "naip" else []
    words = ["umsf", "map", "--data", str(data), "--layout", name, *optical]
    assert shlex.split(command) == words


def test_align_ends_with_the_check_of_its_output(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, target = tmp_path / "data", tmp_path / "out"
    write_fake(root, "whu-opt-sar", sar_transform=DEGREES @ Affine.translation(1, 0))
    options = ["data", "align", str(root), "--layout", "whu-opt-sar", "--output", str(target)]
    assert main(options) == 0
    after = f"umsf data check {target} --layout whu-opt-sar"
    assert last_line(capsys) == f"aligned: {target}; next: {after}"
    assert main([*options, "--resampling", "cubik"]) == 2
    choices = "nearest, bilinear, cubic, average"
    said = f"umsf: resampling 'cubik' is unknown; choose one of: {choices}.\n"
    assert capsys.readouterr().err == said


def test_scenes_are_followed_by_the_map_with_the_same_options(
    project: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ["--profile", "tiny", "--run", "mine", "--overrides", "synthetic.size_px=96"]
    assert main(["synthesize", *given, "--fresh"]) == 0
    said, _, command = last_line(capsys).partition("; next: ")
    assert said.startswith(f"5 scenes (2 train, 1 val, 2 test), prepared in: {project}")
    assert shlex.split(command) == ["umsf", "map", *given]


def test_the_help_names_every_suite_and_others_are_refused(
    capsys: pytest.CaptureFixture, project: Path
) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    shown = capsys.readouterr().out.split("--suite SUITE")[-1]
    assert [suite for suite in SUITES if suite not in shown] == []
    assert main(["report", "--suite", "frist"]) == 2
    listed = "first, baselines, ablations, scale, land, land-ablations, supervised, labels, fusions"
    said = f"umsf: suite 'frist' is unknown; choose one of: {listed}.\n"
    assert capsys.readouterr().err == said and not project.exists()


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Name and parameters of the notebooks that would have run."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def note(name: str, parameters: dict[str, Any]) -> Path:
        seen.append((name, dict(parameters)))
        return Path("runs") / f"{name}.ipynb"

    monkeypatch.setattr("umsf_lib.notebooks.run_notebook", note)
    return seen


CHANGED = "cluster.lr=1e-05 pretrain.positives=[1,0.5,0] model.fusion=add model.despeckle=false"


def test_a_notebook_takes_the_settings_of_its_run(
    project: Path,
    tmp_path: Path,
    executed: list[tuple[str, dict[str, Any]]],
    capsys: pytest.CaptureFixture,
) -> None:
    data = str(tmp_path / "my pairs")
    config = load_config("tiny", data=data, layout="pairs", seed=3, overrides=CHANGED)
    Run.open(config, "mine")
    assert main(["notebook", "05_evaluation", "--run", "mine"]) == 0
    ((name, parameters),) = executed
    assert name == "05_evaluation" and parameters.pop("run") == "mine"
    assert load_config(**parameters) == config
    assert (parameters["profile"], parameters["layout"], parameters["seed"]) == ("tiny", "pairs", 3)
    after = "runs/05_evaluation.ipynb; next: umsf notebook 06_tsne_and_maps --run mine"
    assert last_line(capsys) == f"executed: {after}"


def test_what_is_given_goes_before_the_settings_of_the_run(
    project: Path, executed: list[tuple[str, dict[str, Any]]]
) -> None:
    Run.open(load_config("tiny", seed=3, overrides=CHANGED), "mine")
    given = ["--seed", "0", "--overrides", "cluster.lr=0.5", "--fresh"]
    assert main(["notebook", "05_evaluation", "--run", "mine", *given]) == 0
    parameters = executed[0][1]
    assert parameters.pop("run") == "mine" and parameters["seed"] == 0
    config = load_config(**parameters)
    assert config.cluster.lr == 0.5 and config.stale == "fresh" and config.model.fusion == "add"


def test_a_notebook_of_a_new_run_has_the_defaults(
    project: Path, executed: list[tuple[str, dict[str, Any]]]
) -> None:
    assert main(["notebook", "01_data_preparation", "--run", "new"]) == 0
    assert main(["tutorial", "--profile", "tiny"]) == 0
    first, *tutorial = executed
    assert first[1].pop("run") == "new" and load_config(**first[1]) == load_config("quick")
    assert len(tutorial) == 7
    for _, parameters in tutorial:
        assert parameters.pop("run") == "" and load_config(**parameters) == load_config("tiny")


def test_an_own_layout_is_found_from_any_folder(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    executed: list[tuple[str, dict[str, Any]]],
) -> None:
    (tmp_path / "own.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert main(["notebook", "05_evaluation", "--layout", "own.yaml"]) == 0
    assert executed[0][1]["layout"] == str(tmp_path / "own.yaml")


def test_a_browser_or_a_report_makes_no_run(project: Path, capsys: pytest.CaptureFixture) -> None:
    project.mkdir()
    (project / "notebooks").symlink_to(Path(__file__).parents[1] / "notebooks")
    assert main(["notebook", "12_results_browser", "--run", "nope"]) == 2
    assert capsys.readouterr().err == MISSING.format(project / "runs")
    assert main(["report", "--profile", "tiny", "--run", "nope", "--records", "none"]) == 2
    err = capsys.readouterr().err
    assert "named nope-<seed> has scores" in err and err.count("\n") == 1
    assert main(["gallery", "--run", "nope"]) == 2
    assert "run `umsf tutorial`" in capsys.readouterr().err
    assert main(["notebook", "12_browser"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("umsf: notebook '12_browser' is unknown; choose one of: 01_data_prep")
    assert not (project / "runs").exists()


def test_a_run_for_reading_is_opened_as_it_is(project: Path) -> None:
    made = Run.open(load_config("tiny"), "mine")
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    again = Run.open(load_config("tiny"), "mine", create=False)
    assert dataclasses.asdict(again) == dataclasses.asdict(made)
    assert before == {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}


def test_ctrl_c_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, project: Path, capsys: pytest.CaptureFixture
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("umsf_lib.data.check.survey", stop)
    assert main(["data", "check", str(project), "--layout", "pairs"]) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "umsf: stopped by Ctrl-C.\n"


def test_sigterm_ends_as_ctrl_c_does(
    monkeypatch: pytest.MonkeyPatch, project: Path, capsys: pytest.CaptureFixture
) -> None:
    cleaned: list[bool] = []

    def stop(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            cleaned.append(True)

    usual = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("umsf_lib.data.check.survey", stop)
    assert main(["data", "check", str(project), "--layout", "pairs"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "umsf: stopped by SIGTERM.\n" and cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) == usual


def test_a_reader_that_stops_ends_the_command_without_a_word() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "umsf_lib", "data", "layout", str(SAMPLES)]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert ended.returncode == 141
    assert ended.stderr == f"looking at the rasters of {SAMPLES}\n".encode()


def test_an_output_that_cannot_be_written_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("umsf_lib.data.check.survey", full)
    assert main(["data", "check", str(SAMPLES), "--layout", "pairs"]) == 2
    assert capsys.readouterr().err == "umsf: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ("0,1,0", "--seeds is '0,1,0'; give each seed once."),
        ("1,-2", "seed in tiny.yaml must be greater than or equal to 0, but it is -2 (int)."),
        ("4294967296", "seed in tiny.yaml must be less than 4294967296, but it is"),
    ],
)
def test_what_is_no_seed_is_refused(
    project: Path, capsys: pytest.CaptureFixture, seeds: str, said: str
) -> None:
    assert main(["report", "--profile", "tiny", "--seeds", seeds]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"umsf: {said}") and err.count("\n") == 1 and not project.exists()


def test_a_solution_is_followed_by_the_next_notebook(
    project: Path, executed: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture
) -> None:
    assert main(["notebook", "solutions/05_evaluation", "--profile", "tiny"]) == 0
    assert executed[0][0] == "solutions/05_evaluation"
    after = "umsf notebook 06_tsne_and_maps --profile tiny"
    assert last_line(capsys).endswith(f"; next: {after}")


def test_the_version_is_shown(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"umsf {__version__}\n"


def test_a_contradiction_leaves_the_executed_copy_alone(
    project: Path, capsys: pytest.CaptureFixture
) -> None:
    copy = Run.open(load_config("tiny"), "mine").path("notebooks", "05_evaluation.ipynb")
    copy.parent.mkdir()
    copy.write_text("good")
    assert main(["notebook", "05_evaluation", "--run", "mine", "--seed", "3"]) == 2
    err = capsys.readouterr().err
    assert "made with other settings (seed 0 -> 3)" in err and err.count("\n") == 1
    assert copy.read_text() == "good"
