"""Results browser: pick run, scene and two layers of its map, zoom in, see them side by side.

``BrowserState`` knows what there is to choose and draws the choice; it needs no widgets and is what
the tests drive. ``browse`` puts dropdowns and sliders before it, or returns the plain figure where
nobody could move them.
"""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import ipywidgets
import numpy as np
from IPython.core.getipython import get_ipython
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rasterio.enums import Resampling
from rasterio.warp import transform as project
from rasterio.windows import Window

from .config import DataError, MissingStageError
from .figures.imagery import Array, Rgb, label_image, present_classes
from .figures.panels import add_legend, class_entries, image_panels, show_picture, styled
from .figures.results import ERROR_ENTRIES, show_confidence
from .figures.imagery import ERROR_RGB
from .layouts import LandClass
from .rasters import opened

LAYERS = ("optical", "sar", "label", "prediction", "confidence", "error")
ZOOMS = (1, 2, 4, 8, 16)
_MAX_SIDE = 1000  # pixels read per layer; a panel is not drawn larger
_DEGREE_M = 111_320.0  # of latitude


@dataclass
class BrowserState:
    """What is chosen, and what can be.

    Attributes:
        root: folder of the runs.
        run: name of a run folder with maps; "" picks the first.
        scene: name of a mapped scene.
        left: layer of the left panel.
        right: layer of the right panel.
        zoom: how many times smaller than the scene the shown part is, 1 = all of it.
        across: centre of the shown part, as a share of the width.
        down: the same of the height.
    """

    root: Path
    run: str = ""
    scene: str = ""
    left: str = "optical"
    right: str = "prediction"
    zoom: int = 1
    across: float = 0.5
    down: float = 0.5

    def __post_init__(self) -> None:
        """Check what was asked for, fill in the rest.

        Raises:
            MissingStageError: no run has maps.
            DataError: the asked-for run, scene or layer does not exist.
        """
        asked = {"run": self.run, "scene": self.scene}
        self.run, self.scene = self.run or self.runs()[0], ""
        self.choose("run", self.run)
        if asked["scene"]:
            self.choose("scene", asked["scene"])

    def runs(self) -> list[str]:
        """List the runs that have maps.

        Raises:
            MissingStageError: none has.
        """
        found = sorted({path.parent.parent.name for path in self.root.glob("*/maps/*.tif")})
        if not found:
            raise MissingStageError(
                f"No run under {self.root} has maps: run notebooks/06_tsne_and_maps.ipynb first."
            )
        return found

    def scenes(self) -> list[str]:
        """List the mapped scenes of the chosen run."""
        return sorted({name for name, _ in self._files()})

    def layers(self) -> list[str]:
        """List the layers of the chosen scene: without label, no "label" and no "error"."""
        there = {layer for name, layer in self._files() if name == self.scene}
        return [layer for layer in LAYERS if layer in there]
