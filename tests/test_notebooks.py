"""Rules for the notebooks, and all of them through papermill in the tiny profile."""

from __future__ import annotations

import ast
import base64
import io
import os
import re
import statistics
from pathlib import Path

import nbformat
import papermill
import pytest
from PIL import Image

from umsf_lib.config import ConfigError, MissingStageError, UmsfError
from umsf_lib.notebooks import (
    FURTHER,
    GALLERY_BYTES,
    NOTEBOOKS,
    PARAMETERS,
    SHRUNK_FROM_BYTES,
    run_notebook,
    write_gallery,
)

FOLDER = Path(__file__).parents[1] / "notebooks"
TINY = {"profile": "tiny", "run": "", "data": "", "layout": "", "seed": 0, "overrides": ""}
EVERY = NOTEBOOKS + FURTHER
SOLUTIONS = tuple(f"solutions/{name}" for name in EVERY)
FORBIDDEN = ("sys.path", "!pip", ".cuda()", "/home/", "/tmp/", "C:\\")


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root outside the checkout, where there are no notebooks."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def inside(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UMSF_ROOT", str(root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return root


@pytest.mark.parametrize("name", EVERY + SOLUTIONS)
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
    lengths = [sum(bool(line.strip()) for line in c.source.splitlines()) for c in code]
    assert max(lengths) <= 20 and statistics.median(lengths) <= 6
    assert len(code) <= 0.6 * len(notebook.cells)
    text = "\n".join(c.source for c in notebook.cells)
    assert not [word for word in FORBIDDEN if word in text]


@pytest.mark.parametrize("name", EVERY)
def test_opening_and_end(name: str) -> None:
    """Aim, measured time and checks; the exercises stand in the solutions, word for word."""
    cells = read(name).cells
    assert "You will learn to" in cells[0].source and "*Measured:" in cells[0].source
    assert "## Checks" in "\n".join(c.source for c in cells)
    end = cells[-1].source
    exercises = re.findall(r"^\d\. .*$", end, re.MULTILINE)
    assert 2 <= len(exercises) <= 4 and f"](solutions/{name}.ipynb)" in end
    solved = "\n".join(c.source for c in read(f"solutions/{name}").cells)
    assert re.findall(r"^## (\d\. .*)$", solved, re.MULTILINE) == exercises


def test_every_notebook_has_its_solutions_and_no_more() -> None:
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.ipynb")}
    there = {name for name in there if ".ipynb_checkpoints" not in name}
    assert there == {f"{name}.ipynb" for name in EVERY + SOLUTIONS}


@pytest.mark.slow
def test_every_notebook_runs_in_order_then_the_solutions(inside: Path) -> None:
    for name in EVERY + SOLUTIONS:
        executed = nbformat.read(run_notebook(name, TINY, timeout_s=300), as_version=4)
        outputs = [o for c in executed.cells for o in c.get("outputs", [])]
        assert not [o for o in outputs if o.output_type == "error"]
        assert not [o for o in outputs if o.get("name") == "stderr"]  # no warnings
        if name in EVERY:
            assert any("image/png" in o.get("data", {}) for o in outputs)
    run = inside / "runs" / "tiny-synthetic-0"
    assert len(list((run / "notebooks").rglob("*.ipynb"))) == len(EVERY + SOLUTIONS)
    assert (run / "metrics.json").is_file() and list((run / "maps").glob("*.prediction.tif"))


def sources_of(notebook: nbformat.NotebookNode) -> list[str]:
    """Sources of the cells, without the one that papermill injects; links as in notebooks/."""
    own = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    return [c.source.replace("](../notebooks/", "](") for c in own]


@pytest.mark.slow
def test_gallery_copies_are_small_and_link_back(inside: Path) -> None:
    written = write_gallery(inside / "runs" / "tiny-synthetic-0")
    assert sorted(p.name for p in written) == sorted([f"{n}.ipynb" for n in EVERY] + ["map.jpg"])
    with Image.open(inside / "gallery" / "map.jpg") as picture:
        assert picture.format == "JPEG" and min(picture.size) > 300
    for name in EVERY:
        copy = nbformat.read(inside / "gallery" / f"{name}.ipynb", as_version=4)
        assert sources_of(copy) == sources_of(read(name))
        assert not {"widgets", "papermill"} & set(copy.metadata)
        outputs = [o.get("data", {}) for c in copy.cells for o in c.get("outputs", [])]
        large = [p for d in outputs if len(p := d.get("image/png", "")) > SHRUNK_FROM_BYTES]
        assert all(Image.open(io.BytesIO(base64.b64decode(p))).mode == "P" for p in large)
        assert f"](../notebooks/solutions/{name}.ipynb)" in copy.cells[-1].source


def test_the_gallery_shows_the_notebooks_as_they_are() -> None:
    """``make gallery`` after a change of a notebook."""
    for name in EVERY:
        path = FOLDER.parent / "gallery" / f"{name}.ipynb"
        assert path.stat().st_size <= GALLERY_BYTES
        assert sources_of(nbformat.read(path, as_version=4)) == sources_of(read(name)), name


def test_a_gallery_needs_a_tutorial_that_was_run(tmp_path: Path) -> None:
    with pytest.raises(MissingStageError, match=r"01_data_preparation\.ipynb is missing; run"):
        write_gallery(tmp_path)


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
