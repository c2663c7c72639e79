"""Results browser: show two layers of a run and scene side by side, with zoom.

``browse`` shows widgets, or a plain figure if nobody can use them. ``BrowserState`` holds the
selection, lists the options and draws the figure, without widgets.
"""

from __future__ import annotations

import html
import io
import math
import os
from collections.abc import Sequence
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
from rasterio.windows import Window

from ..config import IGNORE, DataError, MissingStageError, UmsfError
from ..data.layout import LandClass
from ..data.rasters import grid_of, opened
from ..figures.imagery import Array, Rgb, error_image, label_image, present_classes
from ..figures.results import ERROR_ENTRIES, show_confidence
from ..figures.style import (
    add_legend,
    class_entries,
    image_panels,
    pixel_width_m,
    show_picture,
    styled,
)

CHOICES = ("run", "scene", "left", "right", "zoom")  # each depends on the ones before it
LAYERS = ("optical", "sar", "label", "prediction", "confidence", "error")
ZOOMS = (1, 2, 4, 8, 16)
_MAX_SIDE = 1000  # largest side read of a layer, px; panels are not drawn larger


def browse(root: Path, **choice: Any) -> Figure | ipywidgets.VBox:
    """Browse the maps under ``root``: widgets in a live notebook, else a plain figure.

    ``choice`` holds initial fields of ``BrowserState``, e.g. ``run="mine", right="error"``; that
    class also lists the errors.
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
        wanted = {name: getattr(self, name) for name in CHOICES}
        for name, value in wanted.items():
            self.choose(name, value or self._default(name))

    def choices(self, name: str) -> list[Any]:
        """List the options for "run", "scene", "left", "right" or "zoom", given the selection."""
        if name == "run":
            folders = sorted(path.parent.name for path in self.root.glob("*/maps"))
            found = [folder for folder in folders if self._files(folder)]
            if not found:
                raise MissingStageError(
                    f"No run under {self.root} has maps: run notebooks/06_tsne_and_maps.ipynb "
                    "first."
                )
            return found
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
        choices = self.choices(name)
        if value not in choices:
            listed = ", ".join(str(choice) for choice in choices)
            if name == "run":
                raise MissingStageError(
                    f"Run '{value}' has no maps in {self.root} (those that have: {listed}): "
                    "run notebooks/06_tsne_and_maps.ipynb first, with the same run name."
                )
            raise DataError(
                f"The browser's {name} is '{value}', but under {self.root / self.run} there is "
                f"only {listed}; choose one of these."
            )
        setattr(self, name, value)
        for other in ("scene", "left", "right"):
            if getattr(self, other) not in self.choices(other):
                setattr(self, other, self._default(other))

    @styled
    def render(self) -> Figure:
        """Draw the two selected layers with a scale bar and a legend."""
        layers, maps = (self.left, self.right), self.root / self.run / "maps"
        paths = [maps / f"{self.scene}.{layer}.tif" for layer in layers]
        with opened(paths[0]) as source:
            full = source.height, source.width
        height, width = (max(1, side // self.zoom) for side in full)
        top = min(max(round(self.down * full[0] - height / 2), 0), full[0] - height)
        left = min(max(round(self.across * full[1] - width / 2), 0), full[1] - width)
        figure, axes = image_panels(2, 2, (height, width), widest=5, extra=1.2)
        entries: list[tuple[str, Rgb]] = []
        for ax, path, layer in zip(axes, paths, layers, strict=True):
            entries += draw_layer(ax, path, layer, Window(left, top, width, height))
        add_legend(figure, list(dict.fromkeys(entries)))
        figure.suptitle(f"run {self.run}, scene {self.scene}, zoom {self.zoom}")
        return figure

    def _files(self, run: str) -> set[tuple[str, str]]:
        """Return scene and layer of each map of a run."""
        stems = (path.stem.rpartition(".") for path in (self.root / run / "maps").glob("*.tif"))
        return {(scene, layer) for scene, _, layer in stems if layer in LAYERS}

    def _default(self, name: str) -> Any:
        choices, preferred = self.choices(name), {"left": "optical", "right": "prediction"}
        return preferred[name] if preferred.get(name) in choices else choices[0]


def draw_layer(ax: Axes, path: Path, layer: str, window: Window) -> Sequence[tuple[str, Rgb]]:
    """Draw a window of one layer's file, and return entries (name, colour) for the legend.

    Raises:
        DataError: the file cannot be read, or a class map lacks names or colours.
    """
    values, pixel_m = _read(path, window)
    if layer == "confidence":
        show_confidence(ax, values[0])
        return []
    if layer in ("label", "prediction"):
        classes = class_table(path)
        id_of = np.full(256, IGNORE, np.uint8)
        for row in classes:
            id_of[row.code] = row.id
        ids = id_of[values[0]]
        show_picture(ax, label_image(ids, classes), layer, pixel_m)
        return class_entries(present_classes(ids, classes))
    if layer == "error":
        show_picture(ax, error_image(values[0], np.zeros_like(values[0])), layer, pixel_m)
        return ERROR_ENTRIES
    bands = np.resize(values, (3, *values.shape[1:]))  # one band becomes three equal ones
    show_picture(ax, np.moveaxis(bands, 0, -1) / 255, "SAR" if layer == "sar" else layer, pixel_m)
    return []


def _read(path: Path, window: Window) -> tuple[Array, float | None]:
    """Read a window ``(C, h, w)``, coarse enough for a panel, and the width of its pixels in m."""
    step = max(1, math.ceil(max(window.height, window.width) / _MAX_SIDE))
    size = math.ceil(window.height / step), math.ceil(window.width / step)
    with opened(path) as source:
        has_codes = source.dtypes[0] == "uint8" and source.count == 1
        resampling = Resampling.nearest if has_codes else Resampling.average
        values = source.read(window=window, out_shape=(source.count, *size), resampling=resampling)
        pixel_m = pixel_width_m(grid_of(source))
    return values, None if pixel_m is None else pixel_m * window.width / size[1]


def class_table(path: Path) -> list[LandClass]:
    """Read the names, codes and colours of a class map; ids are numbered anew.

    Raises:
        DataError: the file has no colour table, or there is no file with its class names.
    """
    names_path = Path(f"{path}.aux.xml")
    try:
        names = [node.text or "" for node in ElementTree.parse(names_path).iter("Category")]
        with opened(path) as source:
            colors = source.colormap(1)
    except (OSError, ElementTree.ParseError, DataError) as error:
        raise DataError(
            f"{path} has no colour table, or {names_path.name} beside it no class names "
            f"({error}): run notebooks/06_tsne_and_maps.ipynb again."
        ) from error
    codes = [code for code, name in enumerate(names) if name]
    return [
        LandClass(id=number, name=names[code], code=code, rgb=colors[code][:3])
        for number, code in enumerate(codes)
    ]


def browser_widgets(state: BrowserState) -> ipywidgets.VBox:
    """Build dropdowns and sliders for a state; each change redraws the figure."""
    picture, message = ipywidgets.Image(format="png"), ipywidgets.HTML()
    lists = {name: ipywidgets.Dropdown(description=name) for name in CHOICES}
    unit = {"min": 0, "max": 1, "step": 0.05, "continuous_update": False}
    sliders = {n: ipywidgets.FloatSlider(description=n, **unit) for n in ("across", "down")}
    controls: dict[str, Any] = lists | sliders
    updating = False

    def update(change: Any = None) -> None:
        nonlocal updating
        if updating:  # new options change values without any user input
            return
        updating = True
        try:
            if change:
                state.choose(change["owner"].description, change["new"])
            for name, control in controls.items():
                if name in lists:
                    control.options = state.choices(name)
                control.value = getattr(state, name)
            buffer = io.BytesIO()
            state.render().savefig(buffer, format="png")
            picture.value, message.value = buffer.getvalue(), ""
        except UmsfError as error:  # an exception in a callback would only appear in a log
            message.value = html.escape(str(error))
        finally:
            updating = False

    for control in controls.values():
        control.observe(update, "value")
    update()
    row = ipywidgets.HBox(list(controls.values()), layout={"flex_flow": "row wrap"})
    return ipywidgets.VBox([row, message, picture])
