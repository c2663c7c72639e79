"""Rules for the notebooks, and all of them through papermill in the tiny profile."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import nbformat
import papermill
import pytest

from umsf_lib.config import PARAMETERS, ConfigError, UmsfError
from umsf_lib.tutorial import NOTEBOOKS, run_notebook

FOLDER = Path(__file__).parents[1] / "notebooks"
TINY = {"profile": "tiny", "run": "", "data": "", "layout": "", "seed": 0, "overrides": ""}
FORBIDDEN = ("sys.path", "!pip", ".cuda()", "/home/", "/tmp/", "C:\\")


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("root")
    (folder / "notebooks").symlink_to(FOLDER)
    return folder


@pytest.fixture
def inside(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UMSF_ROOT", str(root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return root


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_rules(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert not {"widgets", "papermill"} & set(notebook.metadata)
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    names = [node.targets[0].id for node in ast.parse(tagged[0].source).body]
    assert names == list(PARAMETERS)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code)
    lengths = [c.source.count("\n") + 1 for c in code if c not in tagged]
    assert max(lengths) <= 20
    assert len(code) <= 0.6 * len(notebook.cells)
    assert "You will learn to" in notebook.cells[0].source
    assert "## Checks" in "\n".join(c.source for c in notebook.cells)
    text = "\n".join(c.source for c in notebook.cells)
    assert not [word for word in FORBIDDEN if word in text]


def test_every_notebook_runs_in_order(inside: Path) -> None:
    for name in NOTEBOOKS:
        executed = nbformat.read(run_notebook(name, TINY, timeout_s=300), as_version=4)
        outputs = [o for c in executed.cells for o in c.get("outputs", [])]
        assert not [o for o in outputs if o.output_type == "error"]
        if name != "03_momentum_contrast_pretraining":
            assert any("image/png" in o.get("data", {}) for o in outputs)
    run = inside / "runs" / "tiny-synthetic-0"
    assert (run / "metrics.json").is_file() and list((run / "maps").glob("*.prediction.tif"))


def test_parameters_are_refused_before_anything_runs(inside: Path) -> None:
    with pytest.raises(ConfigError, match="profile"):
        run_notebook(NOTEBOOKS[0], {"profle": "quick"})
    with pytest.raises(ConfigError, match="seed"):
        run_notebook(NOTEBOOKS[0], TINY | {"seed": "3"})


def test_bare_papermill_is_checked_by_the_setup_cell(inside: Path, tmp_path: Path) -> None:
    source = FOLDER / f"{NOTEBOOKS[0]}.ipynb"
    with pytest.raises(papermill.exceptions.PapermillExecutionError, match="profle"):
        papermill.execute_notebook(
            str(source),
            str(tmp_path / "out.ipynb"),
            parameters={"profle": "tiny", "profile": "tiny"},
            progress_bar=False,
            execution_timeout=120,
        )
    assert os.environ["UMSF_ROOT"] == str(inside)


def test_a_missing_stage_names_the_notebook_to_run(inside: Path) -> None:
    with pytest.raises(UmsfError, match="03_momentum_contrast_pretraining"):
        run_notebook(NOTEBOOKS[3], TINY | {"run": "fresh"}, timeout_s=120)
