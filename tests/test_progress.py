"""Progress: what is done, how far it is, and the time left once it has been measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from umsf_lib.config import load_config
from umsf_lib.data.align import align
from umsf_lib.data.check import survey
from umsf_lib.data.stage import load_data, prepare
from umsf_lib.progress import each, print_progress
from umsf_lib.run import Run

from .fakes import write_set


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in s; whoever moves it on changes its only value."""
    now = [100.0]
    monkeypatch.setattr("umsf_lib.progress.time.monotonic", lambda: now[0])
    return now


def test_each_item_is_told_when_it_is_done(clock: list[float]) -> None:
    told: list[tuple[int, int, str]] = []
    items = each("abc", lambda done, of, row: told.append((done, of, row["phase"])), "letters")
    assert next(items) == "a" and told == [(0, 3, "letters")]
    assert next(items) == "b" and told[-1] == (1, 3, "letters")
    assert list(items) == ["c"] and told[-1] == (3, 3, "letters") and len(told) == 4
    assert list(each("ab", None, "")) == ["a", "b"]
    assert list(each((), lambda *_: told.clear(), "")) == [] and told  # nothing to do: not told


def test_the_time_left_is_shown_once_a_step_has_been_measured(
    clock: list[float], capsys: pytest.CaptureFixture
) -> None:
    progress = print_progress("maps", every_s=5)
    for _ in each(range(4), progress, "scenes"):
        clock[0] += 6
    # 6 s for each of four scenes: 18 s left after the first
    assert capsys.readouterr().out.splitlines() == [
        "maps: scenes 0/4",
        "maps: scenes 1/4  6 s, 18 s left",
        "maps: scenes 2/4  12 s, 12 s left",
        "maps: scenes 3/4  18 s, 6 s left",
        "maps: scenes 4/4  24 s, 0 s left",
    ]


def test_a_training_that_goes_on_estimates_from_its_own_steps(
    clock: list[float], capsys: pytest.CaptureFixture
) -> None:
    progress = print_progress("pretrain", every_s=5)
    for step in range(90, 101):  # the first call after 7 s, then 2 s for each step
        clock[0] += 7 if step == 90 else 2
        progress(step, 100, {"loss": 0.5})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pretrain 90/100  loss 0.500"  # nothing measured: no estimate
    assert lines[1] == "pretrain 93/100  loss 0.500  6 s, 14 s left"


def test_each_phase_has_its_own_clock(clock: list[float], capsys: pytest.CaptureFixture) -> None:
    progress = print_progress("cluster", every_s=5)
    for _ in each(range(2), progress, "restarts"):
        clock[0] += 50
    for step in (0, 10, 20):
        clock[0] += 10
        progress(step, 20, {"loss": 1.0} if step else {})
    for _ in each(range(2), progress, "merge"):
        clock[0] += 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:6] == [
        "cluster 0/20",
        "cluster 10/20  loss 1.000  10 s, 10 s left",
        "cluster 20/20  loss 1.000  20 s, 0 s left",
    ]
    assert lines[6:] == ["cluster: merge 0/2", "cluster: merge 2/2  2 s, 0 s left"]


def test_each_phase_has_its_own_bar_where_a_person_watches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("umsf_lib.progress.watched", lambda: True)
    progress = print_progress("data")
    for phase, count in (("simulate", 3), ("prepare", 2)):
        assert list(each(range(count), progress, phase)) == list(range(count))
    seen = capsys.readouterr()
    assert seen.out == "" and "data: simulate:   0%" in seen.err  # begins before the first scene
    assert "3/3" in seen.err and "data: prepare: 100%" in seen.err and "2/2" in seen.err


def test_reading_preparing_and_aligning_say_how_many_scenes_are_done(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    layout, data = write_set(tmp_path / "data"), tmp_path / "data"
    survey(data, layout, progress=print_progress("check"))
    align(data, layout, tmp_path / "out", progress=print_progress("align"))
    for _ in range(2):
        prepare(data, layout, tmp_path / "prepared", progress=print_progress("data"))
    out = capsys.readouterr().out
    ends = re.findall(r"^(\w+: \w+) (\d+)/(\d+)  0 s, 0 s left$", out, re.MULTILINE)
    files = str(sum(path.is_file() for path in data.rglob("*")))
    assert ends == [
        ("check: read", "5", "5"),
        ("align: resample", "5", "5"),
        ("align: copy", files, files),
        ("data: check", "5", "5"),
        ("data: prepare", "5", "5"),
        ("data: verify", "4", "4"),  # the second time: optical, SAR, label and valid
    ]
    small = load_config("tiny", overrides="synthetic.size_px=96")
    load_data(Run.open(small), progress=print_progress("data"))
    assert "data: simulate 5/5" in capsys.readouterr().out
