"""Results browser: show two layers of a run and scene side by side, with zoom.

``BrowserState`` holds the selection, lists the options and draws the figure, without widgets.
``browse`` adds dropdowns and sliders, or returns a plain figure if nobody can use them.
"""

from __future__ import annotations

import html
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets
from IPython.core.getipython import get_ipython
from matplotlib.figure import Figure
from rasterio.windows import Window

from ..config import DataError, MissingStageError, UmsfError
from ..data.rasters import opened
from ..figures.imagery import Rgb
from ..figures.style import add_legend, image_panels, styled
from .read import LAYERS, draw_layer

ZOOMS = (1, 2, 4, 8, 16)
_PREFERRED = {"left": "optical", "right": "prediction"}


@dataclass
class BrowserState:
    """The selection in the browser; "" selects the default, usually the first option.

    Attributes:
        root: folder of the runs.
        run: name of a run folder with maps.
        scene: name of a mapped scene.
        left: layer of the left panel.
        right: layer of the right panel.
        zoom: factor by which the shown part is smaller than the scene.
        across: horizontal centre of the shown part, from 0 (left edge) to 1 (right edge).
        down: vertical centre of the shown part, from 0 (top edge) to 1 (bottom edge).

    Raises:
        MissingStageError: no run has maps, or the selected run has none.
        DataError: the selected scene, layer or zoom does not exist.
    """

    root: Path
    run: str = ""
    scene: str = ""
    left: str = ""
    right: str = ""
    zoom: int = 1
    across: float = 0.5
    down: float = 0.5

    def __post_init__(self) -> None:
        """Check the selection and fill in the defaults."""
        self.root = Path(self.root)
        for name in ("run", "scene", "left", "right", "zoom"):  # each depends on the ones before it
            setattr(self, name, self._allow(name, getattr(self, name) or self._first(name)))

    def choices(self, name: str) -> list[Any]:
        """List the options for "run", "scene", "left", "right" or "zoom", given the selection."""
        if name == "run":
            return self._runs()
        if name == "zoom":
            return list(ZOOMS)
        files = self._files(self.run)
        if name == "scene":
            return sorted({scene for scene, _ in files})
        return [layer for layer in LAYERS if (self.scene, layer) in files]

    def choose(self, name: str, value: Any) -> None:
        """Set one field; scene and layers that are no longer available get their defaults.

        Args:
            name: name of the field.
            value: one of ``choices(name)``; for "across" and "down" any number, clipped to 0..1.

        Raises:
            DataError: the value is not one of the choices.
            MissingStageError: the run has no maps.
        """
        if name in ("across", "down"):
            setattr(self, name, min(max(float(value), 0.0), 1.0))
            return
        setattr(self, name, self._allow(name, value))
        for other in ("scene", "left", "right"):
            if getattr(self, other) not in self.choices(other):
                setattr(self, other, self._first(other))

    @styled
    def render(self) -> Figure:
        """Draw the two selected layers with a scale bar and a legend."""
        top, left, height, width = self._window()
        figure, axes = image_panels(2, 2, (height, width), widest=5, extra=1.2)
        entries: list[tuple[str, Rgb]] = []
        for ax, layer in zip(axes, (self.left, self.right), strict=True):
            entries += draw_layer(ax, self._path(layer), layer, Window(left, top, width, height))
        add_legend(figure, list(dict.fromkeys(entries)))
        figure.suptitle(f"run {self.run}, scene {self.scene}, zoom {self.zoom}")
        return figure

    def _runs(self) -> list[str]:
        folders = sorted(path.parent for path in self.root.glob("*/maps"))
        found = [folder.name for folder in folders if self._files(folder.name)]
        if not found:
            raise MissingStageError(
                f"No run under {self.root} has maps: run notebooks/06_tsne_and_maps.ipynb first."
            )
        return found

    def _files(self, run: str) -> set[tuple[str, str]]:
        stems = (path.stem.rpartition(".") for path in (self.root / run / "maps").glob("*.tif"))
        return {(scene, layer) for scene, _, layer in stems if layer in LAYERS}

    def _first(self, name: str) -> Any:
        choices = self.choices(name)
        return _PREFERRED[name] if _PREFERRED.get(name) in choices else choices[0]

    def _allow(self, name: str, value: Any) -> Any:
        if value not in self.choices(name):
            listed = ", ".join(str(choice) for choice in self.choices(name))
            if name == "run":
                raise MissingStageError(
                    f"Run '{value}' has no maps in {self.root} (those that have: {listed}): "
                    "run notebooks/06_tsne_and_maps.ipynb first, with the same run name."
                )
            raise DataError(
                f"The browser's {name} is '{value}', but under {self.root / self.run} there is "
                f"only {listed}; choose one of these."
            )
        return value

    def _path(self, layer: str) -> Path:
        return self.root / self.run / "maps" / f"{self.scene}.{layer}.tif"

    def _window(self) -> tuple[int, int, int, int]:
        """Return top, left, height and width (px) of the shown part, moved inside the scene."""
        with opened(self._path(self.left)) as source:
            full = source.height, source.width
        height, width = (max(1, side // self.zoom) for side in full)
        top = min(max(round(self.down * full[0] - height / 2), 0), full[0] - height)
        left = min(max(round(self.across * full[1] - width / 2), 0), full[1] - width)
        return top, left, height, width


def browse(root: Path, **choice: Any) -> Figure | ipywidgets.VBox:
    """Browse the maps under ``root``: widgets in a live notebook, else a plain figure.

    Args:
        root: folder of the runs.
        choice: initial fields of ``BrowserState``, e.g. ``run="mine", right="error"``.

    Raises:
        MissingStageError: no run has maps, or the selected run has none.
        DataError: the selected scene, layer or zoom does not exist.
    """
    state = BrowserState(root, **choice)
    return state.render() if is_headless() else browser_widgets(state)


def is_headless() -> bool:
    """Return whether widgets are useless: UMSF_HEADLESS=1, no kernel, or a batch run.

    Interactive front ends allow a cell to ask for input; papermill does not.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    if os.environ.get("UMSF_HEADLESS") == "1" or kernel is None:
        return True
    return not kernel.get_parent("shell").get("content", {}).get("allow_stdin", False)


def browser_widgets(state: BrowserState) -> ipywidgets.VBox:
    """Build dropdowns and sliders for a state; each change redraws the figure."""
    picture = ipywidgets.Image(format="png")
    message = ipywidgets.HTML()
    controls: dict[str, Any] = {
        name: ipywidgets.Dropdown(description=name)
        for name in ("run", "scene", "left", "right", "zoom")
    }
    for name in ("across", "down"):
        controls[name] = ipywidgets.FloatSlider(
            description=name, min=0, max=1, step=0.05, continuous_update=False
        )

    listening = False

    def changed(change: Any) -> None:
        if not listening:
            return
        try:
            state.choose(change["owner"].description, change["new"])
            refresh()
            message.value = ""
        except UmsfError as error:  # an exception in a callback would only appear in a log
            message.value = html.escape(str(error))

    def refresh() -> None:
        nonlocal listening
        listening = False  # setting options changes values without any user input
        for name, control in controls.items():
            if isinstance(control, ipywidgets.Dropdown):
                control.options = state.choices(name)
            control.value = getattr(state, name)
        listening = True
        picture.value = png_bytes(state.render())

    for control in controls.values():
        control.observe(changed, "value")
    refresh()
    boxes = list(controls.values())
    rows = [ipywidgets.HBox(boxes[:2]), ipywidgets.HBox(boxes[2:4]), ipywidgets.HBox(boxes[4:])]
    return ipywidgets.VBox([*rows, message, picture])


def png_bytes(figure: Figure) -> bytes:
    """Draw a figure as a PNG file in memory."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
