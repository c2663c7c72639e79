"""Browser: choices follow the files, the picture shows them, widgets change the picture."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ipywidgets
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from umsf_lib.config import DataError, MissingStageError
from umsf_lib.data.rasters import write_raster
from umsf_lib.figures.imagery import IGNORE_RGB, RIGHT_RGB, WRONG_RGB
from umsf_lib.maps import browser
from umsf_lib.maps.browser import BrowserState, browse, browser_widgets, class_table

from ..fakes import METRES, UTM

H, W = 24, 40
COLORS = {10: (200, 10, 10), 20: (10, 200, 10), 30: (10, 10, 200)}
NAMES = {10: "farmland", 20: "city & suburb", 30: "village"}


def write_map(root: Path, run: str, scene: str, *, label: bool = True) -> None:
    """One scene: code 10 on the left half, 20 on the right, no data in the first row."""
    codes = np.repeat([10, 20], W // 2)[None].repeat(H, 0).astype(np.uint8)
    codes[0] = 0
    coded: dict[str, Any] = {"nodata": 0, "colors": COLORS, "class_names": NAMES}
    layers: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "prediction": (codes, coded),
        "confidence": (np.linspace(0, 1, H * W, dtype=np.float32).reshape(H, W), {}),
        "optical": (np.full((3, H, W), [[[250]], [[130]], [[20]]], np.uint8), {}),
        "sar": (np.full((H, W), 99, np.uint8), {}),
    }
    if label:
        error = np.zeros((H, W), np.uint8)
        error[:, W // 2 :] = 1
        layers |= {"label": (np.where(codes == 20, 10, codes), coded), "error": (error, {})}
    for layer, (array, extras) in layers.items():
        path = root / run / "maps" / f"{scene}.{layer}.tif"
        write_raster(path, array, crs=UTM, transform=METRES, **extras)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_map(tmp_path, "first", "NH49E001013")
    write_map(tmp_path, "first", "v1.5.tile")  # dots in a scene's name
    write_map(tmp_path, "second", "059", label=False)
    (tmp_path / "unmapped" / "maps").mkdir(parents=True)
    (tmp_path / "first" / "maps" / ".tmp-1.tif").touch()  # another process is writing
    return tmp_path


def panel_colour(figure: Figure, index: int, across: float) -> tuple[int, ...]:
    """Colour in the drawn figure, at mid height of a panel."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())
    x, y = figure.axes[index].transAxes.transform((across, 0.5))
    return tuple(picture[picture.shape[0] - 1 - int(y), int(x), :3].tolist())


def legend_names(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# ---- state -----------------------------------------------------------------------------------


def test_choices_follow_the_files(runs: Path) -> None:
    state = BrowserState(runs)
    assert (state.run, state.scene) == ("first", "NH49E001013")
    assert (state.left, state.right) == ("optical", "prediction")
    assert state.choices("run") == ["first", "second"]
    assert state.choices("scene") == ["NH49E001013", "v1.5.tile"]
    layers = ["optical", "sar", "label", "prediction", "confidence", "error"]
    assert state.choices("left") == state.choices("right") == layers


def test_another_run_keeps_what_it_has_and_replaces_what_it_lacks(runs: Path) -> None:
    state = BrowserState(runs, left="error", right="confidence", zoom=4)
    state.choose("run", "second")
    assert (state.scene, state.left, state.right, state.zoom) == ("059", "optical", "confidence", 4)
    assert "label" not in state.choices("left")


def test_position_stays_inside_the_scene(runs: Path) -> None:
    state = BrowserState(runs, zoom=4, right="confidence")
    expected = np.linspace(0, 1, H * W, dtype=np.float32).reshape(H, W)
    for across, column in ((-3, 0), (0.5, 15), (1, 30)):
        state.choose("across", across)
        image = state.render().axes[1].get_images()[0].get_array()
        np.testing.assert_array_equal(image, expected[9:15, column : column + 10])


@pytest.mark.parametrize(
    ("name", "value", "there"),
    [
        ("scene", "NH50", "NH49E001013, v1.5.tile"),
        ("left", "dem", "optical, sar"),
        ("zoom", 3, "1, 2"),
    ],
)
def test_unknown_choice_names_field_value_and_what_there_is(
    runs: Path, name: str, value: Any, there: str
) -> None:
    state = BrowserState(runs)
    with pytest.raises(DataError, match=f"{name} is '{value}'.*{there}"):
        state.choose(name, value)
    with pytest.raises(DataError, match=f"'{value}'"):
        BrowserState(runs, **{name: value})
    assert state == BrowserState(runs)  # a refused choice changes nothing


def test_without_maps_it_says_which_notebook_to_run(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingStageError, match="06_tsne_and_maps"):
        BrowserState(tmp_path / "nowhere")
    with pytest.raises(MissingStageError, match="'unmapped' has no maps.*first, second.*06_tsne"):
        browse(runs, run="unmapped")


# ---- picture ---------------------------------------------------------------------------------


def test_render_shows_both_layers_in_their_colours(runs: Path) -> None:
    state = BrowserState(runs, left="optical", right="prediction")
    figure = state.render()
    assert [ax.get_title() for ax in figure.axes] == ["optical", "prediction"]
    assert panel_colour(figure, 0, 0.5) == (250, 130, 20)
    assert panel_colour(figure, 1, 0.25) == COLORS[10]
    assert panel_colour(figure, 1, 0.75) == COLORS[20]
    assert legend_names(figure) == ["farmland", "city & suburb"]  # no village on this map


def test_legend_holds_what_is_in_view(runs: Path) -> None:
    state = BrowserState(runs, left="label", right="error")
    figure = state.render()
    assert legend_names(figure) == ["farmland", "right", "wrong", "no label"]
    assert panel_colour(figure, 1, 0.25) == RIGHT_RGB
    assert panel_colour(figure, 1, 0.75) == WRONG_RGB
    state = BrowserState(runs, left="sar", right="prediction", zoom=4, across=1.0)
    figure = state.render()
    assert legend_names(figure) == ["city & suburb"]
    assert panel_colour(figure, 0, 0.5) == (99, 99, 99)
    (bar,) = [p for p in figure.axes[0].patches if p.get_gid() == "scale bar"]
    # 20 m of pixels of 10 m, stretched a little by the projection
    assert bar.get_width() == pytest.approx(2, rel=0.01)


def test_class_table_comes_from_the_file(runs: Path) -> None:
    path = runs / "first" / "maps" / "NH49E001013.prediction.tif"
    assert {row.code: (row.name, row.rgb) for row in class_table(path)} == {
        code: (NAMES[code], COLORS[code]) for code in COLORS
    }
    Path(f"{path}.aux.xml").unlink()
    with pytest.raises(DataError, match=r"prediction\.tif\.aux\.xml .*no class names"):
        BrowserState(runs).render()


def test_a_class_of_code_255_is_not_taken_for_no_data(tmp_path: Path) -> None:
    codes = np.repeat([0, 7, 255], 10)[None].repeat(H, 0).astype(np.uint8)
    coded: dict[str, Any] = {
        "colors": {7: (9, 8, 7), 255: (250, 10, 10)},
        "class_names": {7: "a", 255: "b"},
    }
    path = tmp_path / "run" / "maps" / "s.prediction.tif"
    write_raster(path, codes, crs=UTM, transform=METRES, nodata=0, **coded)
    figure = BrowserState(tmp_path).render()
    colours = [panel_colour(figure, 0, across) for across in (1 / 6, 3 / 6, 5 / 6)]
    assert colours[1:] == [(9, 8, 7), (250, 10, 10)] and colours[0] == tuple(IGNORE_RGB)
    write_raster(path, codes.clip(0, 7), crs=UTM, transform=METRES, nodata=0, **coded)
    assert legend_names(BrowserState(tmp_path).render()) == ["a"]


def test_damaged_map_file_is_named(runs: Path) -> None:
    path = runs / "second" / "maps" / "059.prediction.tif"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"059\.prediction\.tif \(200 bytes\)"):
        BrowserState(runs, run="second").render()


# ---- view ------------------------------------------------------------------------------------


def parts(view: Any) -> tuple[dict[str, Any], Any, Any]:
    """Controls by name, message and picture of the widget tree."""
    *rows, message, picture = view.children
    return {box.description: box for row in rows for box in row.children}, message, picture


def test_each_control_changes_the_picture(runs: Path) -> None:
    state = BrowserState(runs)
    controls, message, picture = parts(browser_widgets(state))
    assert list(controls) == ["run", "scene", "left", "right", "zoom", "across", "down"]
    seen = [picture.value]
    for name, value in (
        ("right", "confidence"),
        ("zoom", 4),
        ("across", 0.1),
        ("down", 0.9),
        ("left", "sar"),
        ("scene", "v1.5.tile"),
        ("run", "second"),
    ):
        controls[name].value = value
        assert getattr(state, name) == value
        seen.append(picture.value)
    assert all(imread(io.BytesIO(png)).ndim == 3 for png in seen)
    assert len(set(seen)) == len(seen) and message.value == ""
    assert controls["scene"].options == ("059",) and controls["scene"].value == "059"
    assert "label" not in controls["left"].options
    # new options reset a dropdown for a moment; that is not a choice
    assert (state.left, state.right, state.zoom) == ("sar", "confidence", 4)
    assert [controls[name].value for name in ("left", "right")] == ["sar", "confidence"]


def test_view_tells_what_went_wrong_and_recovers(runs: Path) -> None:
    controls, message, picture = parts(browser_widgets(BrowserState(runs)))
    path = runs / "first" / "maps" / "NH49E001013.confidence.tif"
    content = path.read_bytes()
    path.write_bytes(b"no GeoTIFF")
    before = picture.value
    controls["right"].value = "confidence"
    assert "NH49E001013.confidence.tif" in message.value and picture.value == before
    path.write_bytes(content)
    controls["zoom"].value = 2
    assert message.value == "" and picture.value != before


def fake_shell(allow_stdin: bool) -> Any:
    request = {"content": {"allow_stdin": allow_stdin}}
    return SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda channel: request))


def test_widgets_only_where_somebody_can_move_them(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UMSF_HEADLESS", raising=False)
    assert isinstance(browse(runs), Figure)  # no kernel at all
    monkeypatch.setattr(browser, "get_ipython", lambda: fake_shell(False))
    assert isinstance(browse(runs), Figure)  # papermill
    monkeypatch.setattr(browser, "get_ipython", lambda: fake_shell(True))
    assert isinstance(browse(runs), ipywidgets.VBox)
    monkeypatch.setenv("UMSF_HEADLESS", "1")
    assert isinstance(browse(runs), Figure)
