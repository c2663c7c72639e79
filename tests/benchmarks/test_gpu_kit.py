"""The GPU kit on a CPU, in an environment of its own packages only; its table; bad input."""

from __future__ import annotations

import argparse
import errno
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import gpu, gpu_table

ROOT = Path(__file__).parents[2]
KIT = ROOT / "benchmarks" / "gpu.sh"
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
HEADER = KIT.read_text(encoding="utf-8").split("set -euo")[0]
PACKAGES = "torch torchvision numpy scipy scikit-learn pandas matplotlib seaborn"
PACKAGES += " pyyaml filelock tqdm"
WHEELS = "rasterio affine attrs certifi click click-plugins cligj"
WHEELS += " pydantic pydantic-core annotated-types typing-extensions typing-inspection"


def with_needs(names: list[str]) -> set[str]:
    """Installed distributions: these and all that they ask for on this machine."""
    found: set[str] = set()
    while names:
        name = canonicalize_name(names.pop())
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                names.append(need.name)
    return found


def bare_environment(folder: Path) -> Path:
    """A virtual environment with links to the kit's packages and nothing else; its Python."""
    venv.create(folder, with_pip=True, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    for name in with_needs(PACKAGES.split()):
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or () if ".." not in file.parts}
        for top in tops - {"__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder / "bin" / "python"


def run(
    *options: str | Path, python: Path | str = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "UMSF_ROOT")}
    own |= {"PYTHON": str(python), "CUDA_VISIBLE_DEVICES": ""} | environment
    command = ["bash", str(KIT), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=own, check=False)


@pytest.mark.slow
def test_the_small_kit_runs_with_its_packages_and_wheels_alone(tmp_path: Path) -> None:
    python = bare_environment(tmp_path / "bare")
    listed = subprocess.run([python, "-c", "import papermill"], capture_output=True, check=False)
    assert listed.returncode == 1  # the environment is bare
    wheels = tmp_path / "wheels"
    pinned = [f"{n}=={importlib.metadata.version(n)}" for n in WHEELS.split()]
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(wheels)]
    subprocess.run([*download, *pinned], check=True)
    begin = time.monotonic()
    done = run("--small", "--wheels", wheels, "--out", tmp_path / "out", python=python)
    took = time.monotonic() - begin
    logs = {path.name: path.read_text()[-2000:] for path in (tmp_path / "out").glob("*.log")}
    assert done.returncode == 0, (done.stdout, done.stderr, logs)
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(files) <= 8 and "gpu.json" in files
    record = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert record["device"] == "cpu" and record["small"]
    assert took < 180, "the header promises three minutes"
    parts = record["parts"]
    assert parts["right"]["resumed_equals_unbroken"] and parts["right"]["killed_by"] == 9
    assert max(parts["right"]["rounding"][:10]) < 1e-3
    assert parts["fast"]["eager_4"]["pairs_per_s"] > 0
    assert len(parts["fast"]["profile_4"]["longest"]) == 10
    tokens = [(row["tokens"], row.get("steps")) for row in parts["pays"]["curve"]]
    assert tokens[:3] == [("statistics", None), ("network", 0), ("network", 10)]
    assert set(parts["rest"]["cpu"]) == {"cluster", "evaluate", "maps"}
    assert parts["paper"]["s_per_step"] > 0
    assert all(part["end"].startswith("done") for part in parts.values())


def test_the_header_lists_the_packages_and_wheels_that_the_slow_test_uses() -> None:
    needed, fetched = HEADER.split("The rest", 1)
    assert set(PACKAGES.split()) <= set(re.findall(r"[\w-]+", needed))
    assert set(WHEELS.split()) <= set(re.findall(r"[\w-]+", fetched.split("-d wheels")[1]))


def test_without_a_gpu_the_kit_says_so_in_one_sentence(tmp_path: Path) -> None:
    done = run("--out", tmp_path / "out")
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert re.fullmatch(r"gpu\.sh: torch \S+ sees no CUDA GPU; .*--small.*\n", done.stderr)


def test_an_unknown_part_is_named_and_a_folder_that_cannot_be(tmp_path: Path) -> None:
    done = run("--small", "--parts", "quick", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "part 'quick' is unknown; choose of right, fast, pays, rest, paper" in done.stdout
    (tmp_path / "file").write_text("")
    done = run("--small", "--out", tmp_path / "file" / "out")
    assert done.returncode == 1 and "out cannot be made (Not a directory)" in done.stderr
    done = run("--small", "--wheels", tmp_path / "nowhere")
    assert done.returncode == 2 and "nowhere' is no folder; name the one that" in done.stderr


def test_the_table_of_the_results_is_made_of_the_newest_measurements() -> None:
    results = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- gpu_table\.py -->\n\n(.*?)<!-- end -->", results, re.DOTALL)
    assert shown is not None
    assert shown[1] == gpu_table.table(RESULTS)


def test_a_newer_result_counts_row_by_row_and_a_small_one_never(tmp_path: Path) -> None:
    def write(name: str, date: str, device: str, small: bool, **paper: float) -> None:
        record = {"device": device, "date": date, "small": small, "parts": {"paper": paper}}
        (tmp_path / name).write_text(json.dumps(record))

    write("b.json", "2030-01-01", "GPU A", False, s_per_step=0.5, peak_gpu_gb=9)
    write("a.json", "2030-01-02", "GPU A", False, s_per_step=0.25, projected_hours=7)
    write("c.json", "2030-01-03", "cpu", True, s_per_step=8, peak_gpu_gb=8)
    text = gpu_table.table(tmp_path)
    assert text.splitlines()[0].split("|")[2:-1] == [" GPU A "]
    assert "| 0.250 s, 9 GB |" in text and "| 7.0 h |" in text
    assert "| the same, compiled | not measured |" in text


def options_of(tmp_path: Path, *parts: str) -> argparse.Namespace:
    return argparse.Namespace(out=tmp_path / "out", small=True, parts=list(parts))


def test_a_part_that_runs_over_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    process = gpu.start(["bash", "-c", "sleep 300 & echo $!; wait"], tmp_path / "log")
    while not (text := (tmp_path / "log").read_text()):
        time.sleep(0.01)
    gpu.stop(process)
    state = Path("/proc", text.strip(), "stat")
    for _ in range(500):
        if not state.is_file() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            break  # gone, or dead and not yet taken notice of
        time.sleep(0.01)
    else:
        pytest.fail("the process that the part had started lives on")
    options = options_of(tmp_path, "right")
    options.out.mkdir()
    assert re.match(r"stopped after its \d+ s; what", gpu.run_part("right", options, 1.0))


def test_parts_that_fail_do_not_stop_the_next(tmp_path: Path, monkeypatch, capsys) -> None:
    ends = {"right": "failed after 3 s", "rest": "done in 4 s"}
    monkeypatch.setattr(gpu, "run_part", lambda part, options, bound: ends[part])
    blocked = {"paper": "the disk is too small."}
    monkeypatch.setattr(gpu, "obstacle", lambda part, device, work: blocked.get(part, ""))
    monkeypatch.setenv("UMSF_ROOT", "")  # which run_all sets
    options = options_of(tmp_path, "right", "paper", "rest")
    options.out.mkdir()
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert gpu.run_all(options, torch.device("cpu")) == 1
    record = json.loads((options.out / "gpu.json").read_text())
    said = {part: values["end"] for part, values in record["parts"].items()}
    assert said == ends | {"paper": "not run: the disk is too small."}
    printed = capsys.readouterr().out
    assert re.search(r"right: at most 1[67]\d s", printed) and "paper: at most" not in printed


def test_without_its_scenes_a_part_is_left_out_and_the_next_runs(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(gpu, "run_part", lambda part, options, bound: "done in 1 s")
    monkeypatch.setattr(gpu, "obstacle", lambda part, device, work: "")
    monkeypatch.setattr(gpu, "SCENES_S", 0.3)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("UMSF_ROOT", "")
    for command in (["sleep", "60"], ["false"]):
        monkeypatch.setattr(gpu, "command_of", lambda *_, command=command: command)
        options = options_of(tmp_path, "pays", "rest")
        options.out.mkdir(exist_ok=True)
        assert gpu.run_all(options, torch.device("cpu")) == 1
        parts = json.loads((options.out / "gpu.json").read_text())["parts"]
        assert parts["pays"]["end"].startswith("not run: its scenes were not made within 0.3 s")
        assert parts["rest"]["end"] == "done in 1 s"


def test_what_a_machine_lacks_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5e9))
    assert gpu.obstacle("right", cpu, tmp_path) == ""
    assert "5.0 GB of free disk, 10 are needed" in gpu.obstacle("right", cuda, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5e10))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6e9, 8e10))
    assert "6 GB of the GPU's memory are free, 16 are" in gpu.obstacle("fast", cuda, tmp_path)
    assert gpu.obstacle("right", cuda, tmp_path) == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert gpu.obstacle("right", cpu, tmp_path).startswith("rasterio is missing; name a folder")
    assert gpu.obstacle("fast", cpu, tmp_path) == ""
    full = OSError(errno.ENOSPC, "No space left on device", "results")
    assert gpu.one_line(full) == "the disk is full (results); free 10 GB."
    assert gpu.one_line(torch.cuda.OutOfMemoryError("...")).startswith("the GPU's memory is full;")


def test_states_are_compared_bit_by_bit() -> None:
    def state(x: float, word: str = "a") -> dict:
        return {"module": {"w": torch.tensor([1.0, x])}, "rows": [{"loss": x}, (word, 2)]}

    assert gpu.same_bits(state(0.5), state(0.5))
    assert not gpu.same_bits(state(0.5), state(0.5, "b"))
    assert not gpu.same_bits(state(0.5), state(0.5 + 2e-8))
    assert not gpu.same_bits(state(0.5), state(0.5) | {"more": 1})
