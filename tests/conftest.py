"""Small prepared data sets that several test files read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from umsf_lib.config import load_config
from umsf_lib.data.scene_set import SceneSet
from umsf_lib.data.stage import prepare
from umsf_lib.data.windows import PixelStore
from umsf_lib.experiments.pipeline import run_everything
from umsf_lib.run import Run

from .fakes import write_set

CPU = torch.device("cpu")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project root, so that nothing is written into the checkout."""
    root = tmp_path / "project"
    monkeypatch.setenv("UMSF_ROOT", str(root))
    return root


def _prepared(folder: Path, layout_name: str) -> SceneSet:
    layout = write_set(folder / "data", layout_name)
    return prepare(folder / "data", layout, folder / "prepared")


@pytest.fixture(scope="session")
def whu(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    """8-bit scenes with labels: see ``fakes.write_set``. To be read only."""
    return _prepared(tmp_path_factory.mktemp("whu"), "whu-opt-sar")


@pytest.fixture(scope="session")
def terramesh(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    """Calibrated scenes with labels, transductive. To be read only."""
    return _prepared(tmp_path_factory.mktemp("terramesh"), "terramesh")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    """8-bit RGB and SAR without labels. To be read only."""
    return _prepared(tmp_path_factory.mktemp("pairs"), "pairs")


@pytest.fixture(scope="session")
def whu_store(whu: SceneSet) -> PixelStore:
    return PixelStore(whu, whu.statistics, CPU)


@pytest.fixture(scope="session")
def terramesh_store(terramesh: SceneSet) -> PixelStore:
    return PixelStore(terramesh, terramesh.statistics, CPU)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A finished run of the tiny profile on synthetic scenes, maps included. To be read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UMSF_ROOT", str(tmp_path_factory.mktemp("tiny")))
        run = Run.open(load_config("tiny"))
        run_everything(run, maps=True)
        yield run
