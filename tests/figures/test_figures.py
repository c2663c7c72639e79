"""Figures: colours against the class table, what is drawn where, and nothing cut off."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from affine import Affine
from IPython.core.pylabtools import print_figure
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.text import Text
from rasterio.crs import CRS

from umsf_lib import figures
from umsf_lib.config import IGNORE, ConfigError, DataError, load_config
from umsf_lib.data.layout import LandClass, load_layout
from umsf_lib.data.rasters import Grid
from umsf_lib.figures.diagrams import DIAGRAMS
from umsf_lib.figures.imagery import IGNORE_RGB, RIGHT_RGB, WRONG_RGB, error_image
from umsf_lib.figures.results import _short
from umsf_lib.figures.style import COLORS, add_scale_bar, new_panels, round_length
from umsf_lib.models.umsf_net import UmsfNet, central_attention
from umsf_lib.pretraining.augmentations import View, sample_tokens
from umsf_lib.pretraining.batches import Batch, as_arrays

CLASSES = load_layout("whu-opt-sar").classes
LONG = tuple(
    LandClass(i, f"{word} needle-leaved evergreen forest", i + 1, (20 * i, 90, 255 - 20 * i))
    for i, word in enumerate(("closed", "open", "flooded", "burnt", "young", "old", "mixed"))
)
RNG = np.random.default_rng(5)
H, W = 40, 60
LABEL = np.repeat(np.arange(5), W // 5)[None].repeat(H, 0)  # (H, W), classes 5 and 6 do not occur
LABEL[:3, :3] = IGNORE
PREDICTION = np.roll(np.where(LABEL == IGNORE, 0, LABEL), 2, axis=1)
RGB = RNG.random((H, W, 3)).astype(np.float32)
LOG = RNG.normal(8, 1, (H, W))
PRESENT = [row.name for row in CLASSES[:5]]
TABLE = np.array([[50, 10, 0], [5, 60, 5], [0, 20, 50], [1200, 0, 0]])


def drawn(figure: Figure) -> np.ndarray:
    """Draw with Agg: (height, width, 3) uint8, and the layout is final."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def panel(figure: Figure, title: str) -> Any:
    (found,) = [ax for ax in figure.axes if ax.get_title() == title]
    return found


def look(figure: Figure) -> Callable[[str, float, float], tuple[int, ...]]:
    """Draw once; then ask for the colour at (panel title, row, column of its image)."""
    picture = drawn(figure)

    def pixel(title: str, row: float, column: float) -> tuple[int, ...]:
        x, y = panel(figure, title).transData.transform((column, row))
        return tuple(picture[picture.shape[0] - 1 - int(y), int(x)].tolist())

    return pixel


def shown_texts(figure: Figure) -> list[Text]:
    """Texts that are drawn: matplotlib also keeps labels of ticks beyond the ends of an axis."""
    hidden = set()
    for axis in [axis for ax in figure.findobj(Axes) for axis in (ax.xaxis, ax.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        beyond = [t for t in axis.get_major_ticks() if not low <= t.get_loc() <= high]
        hidden |= {label for tick in beyond for label in (tick.label1, tick.label2)}
    texts = figure.findobj(lambda a: isinstance(a, Text) and a.get_visible() and a.get_text())
    return [text for text in texts if text not in hidden]


def legend_names(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def batch(sensors: tuple[str, ...] = ("optical", "sar")) -> Batch:
    """Two windows of 16 x 20 px; the second view is the first one turned by half a circle."""
    generator = torch.Generator().manual_seed(0)
    images = {name: torch.rand(2, 4, 16, 20, generator=generator) for name in sensors}
    here = 1.8 * torch.rand(2, 9, 2, generator=generator) - 0.9
    seen = torch.ones(2, 9, dtype=torch.bool)
    seen[1, 3:] = False
    views = View(images, torch.zeros(2, 2, 3)), View(images, torch.zeros(2, 2, 3))
    corners = torch.zeros(2, 2)
    return Batch(
        *views, torch.zeros(2), corners, corners, here, -here, seen, seen.any(dim=1), window_px=16
    )


RECORDS = [
    {"step": step, "intra_sar": 7 - step / 50, "std": 0.1} | ({} if step % 5 else {"fused": 6.0})
    for step in range(100)
]
ATTENTION = RNG.dirichlet(np.ones(16), 8)
POINTS = {name: RNG.normal(0, 30, (80, 2)) for name in ("optical", "SAR", "fused")}
SCORES = pd.DataFrame(
    {"acc": [0.4, 0.99], "nmi": [0.2, np.nan]},
    index=["k-means on local statistics", "self-trained, optical and SAR"],
)
BOUNDS = {"a": (108.0, 31.0, 108.25, 31.2), "b": (108.25, 31.0, 108.5, 31.2), "c": (9, 50, 9.1, 51)}
SPLIT = {"a": "train", "b": "train", "c": "test"}

CURVES = {"optical": [0.1, 0.5, 0.9, 1.0], "sar": [0.6, 0.7, math.nan, 1.1]}
ACCURACY = pd.DataFrame(
    {"rf_acc": [0.9, 0.6, 0.99, 0.7], "rf_acc_std": 0.05, "knn_acc": 0.5, "knn_acc_std": 0.1},
    index=pd.MultiIndex.from_product(
        [["local statistics", "neighbours"], ["random patches held out", "scenes held out"]],
        names=["method", "protocol"],
    ),
)
JUDGES = {"rf_acc": "random forest", "knn_acc": "5 nearest neighbours"}
ANCHORS = np.array([[4, 6], [20, 40]])
NEAR = ANCHORS[:, None] + np.array([[0, 0], [3, -2], [-4, 5]])  # (2, 3, 2)
COMPARED = [
    {
        "group": "class contrasts, optical",
        "target": 10,
        "value": 11,
        "tolerance": 2,
    },  # half a tolerance above
    {"group": "class contrasts, optical", "target": 10, "value": 7, "tolerance": 2},
    {"group": "class shares", "target": 10, "value": 99, "tolerance": 2},
    {"group": "class shares", "target": 10, "value": np.nan, "tolerance": 2},
]

CASES: dict[str, Callable[[], Figure]] = {
    "variogram": lambda: figures.variogram_figure(CURVES, [5, 10, 40, 80], radius_m=30),
    "neighbours": lambda: figures.neighbours_figure(
        RGB, ANCHORS, NEAR.astype(float), 8, radius_px=(10, 12), pixel_m=10
    ),
    "probe": lambda: figures.probe_figure(ACCURACY, JUDGES),
    "scene": lambda: figures.scene_figure(
        RGB, LOG, LABEL, classes=CLASSES, title="NH49E001013", pixel_m=4.3
    ),
    "scene, long names": lambda: figures.scene_figure(RGB, LOG, LABEL, classes=LONG),
    "scene, optical only": lambda: figures.scene_figure(RGB, None, None, pixel_m=10),
    "histogram": lambda: figures.histogram_figure({"VV": LOG, "VH": LOG - 3}),
    "shares": lambda: figures.class_shares_figure(
        {"train": np.arange(7) / 21, "test": np.ones(7) / 7}, LONG
    ),
    "spectra": lambda: figures.spectra_figure(
        {"optical": {f"band {i}": RGB[:, :, i % 3] for i in range(8)}, "SAR": {"VV": LOG}},
        LABEL,
        LONG,
    ),
    "split": lambda: figures.split_figure(BOUNDS, SPLIT),
    "split, touching": lambda: figures.split_figure(BOUNDS, SPLIT | {"nowhere": "test"}, ["b"]),
    "split, no places": lambda: figures.split_figure({}, SPLIT),
    "realism": lambda: figures.realism_figure({"easy": COMPARED, "realistic": COMPARED[::2]}),
    "views": lambda: figures.views_figure(*as_arrays(batch()), (2, 1, 0)),
    "views, one sensor": lambda: figures.views_figure(*as_arrays(batch(("sar",))), (2, 1, 0)),
    "despeckle": lambda: figures.despeckle_figure(
        LOG, LOG / 2 + 4, reference=LOG, enl={"before": 1, "after": 50}
    ),
    "training": lambda: figures.training_figure(
        RECORDS,
        ["intra_sar", "fused"],
        chance={"all embeddings equal, ln(1+Q)": 7.62, "random unit embeddings": 9.25},
        monitors=["std", "top1", "mean_cosine"],
        healthy={"std": 0.125},
        alarm={"std": 0.0375, "mean_cosine": 0.9},
    ),
    "training, loss only": lambda: figures.training_figure(RECORDS[:3], ["fused"]),
    "attention, four heads": lambda: figures.attention_figure(
        RGB[:, :40], ATTENTION[:4], (1, 2), grid=(4, 4), gates=np.full((2, 4, 4), 0.5)
    ),
    "attention": lambda: figures.attention_figure(
        RGB[:, :40], ATTENTION, (1, 2), grid=(4, 4), gates=np.full((2, 4, 4), 0.5)
    ),
    "attention, SAR beside": lambda: figures.attention_figure(
        RGB[:, :40], ATTENTION, (1, 2), grid=(4, 4), gates=np.full((2, 4, 4), 0.5), sar=RGB[:, :40]
    ),
    "confusion": lambda: figures.confusion_figure(TABLE, LONG[:3], np.array([1, 0, 2, -1])),
    "tsne": lambda: figures.tsne_figure(
        POINTS,
        np.arange(80) % 7,
        np.arange(80) % 5,
        clusters=figures.cluster_classes(7),
        classes=CLASSES,
    ),
    "map": lambda: figures.map_figure(
        RGB, LOG, PREDICTION, RGB[..., 0], classes=LONG, label=LABEL, pixel_m=30, title="059"
    ),
    "map, 14 clusters": lambda: figures.map_figure(
        RGB, LOG, LABEL, RGB[..., 0], classes=figures.cluster_classes(14), pixel_m=30
    ),
    "map, no SAR": lambda: figures.map_figure(
        RGB, None, PREDICTION, RGB[..., 0], classes=CLASSES, title="student"
    ),
    "scores": lambda: figures.scores_figure(SCORES, constant={"acc": 0.407}),
    "intervals": lambda: figures.intervals_figure(
        INTERVALS, SCORE_TITLES, label="ours minus the other", lines={"equal to ours": {"acc": 0}}
    ),
    "scale": lambda: figures.curves_figure(SCALE, SCORE_TITLES),
    "maps": lambda: figures.maps_figure(
        {f"mixture-statistics: 0.{n}": figures.label_image(PREDICTION, LONG) for n in range(6)},
        LONG,
        pixel_m=30,
    ),
    "f1": lambda: figures.per_class_f1_figure(
        {"k-means on local statistics": np.full(7, np.nan), "mixture": np.arange(7) / 7}, CLASSES
    ),
}

CASES |= {f"diagram, {name}": partial(figures.diagram_figure, name) for name in DIAGRAMS}

SCORE_TITLES = {"acc": "ACC", "nmi": "NMI"}
SCALE = pd.DataFrame(
    [
        (scenes, name, metric, 0.5 + scenes / 200, spread)
        for scenes, spread in ((4, 0.05), (8, np.nan), (64, 0.02))
        for name in ("umsf", "umsf, no pretraining", "mixture-statistics")
        for metric in SCORE_TITLES
    ],
    columns=["scenes", "name", "metric", "mean", "std"],
)
INTERVALS = pd.DataFrame(
    [
        ("sensors", "optical", "acc", 0.1, 0.05, 0.15),
        ("sensors", "optical", "nmi", 0.2, np.nan, np.nan),
        ("sensors", "umsf no_pretraining, a long name", "acc", -0.1, -0.2, 0.02),
        ("fusion", "add", "acc", 0.0, 0.0, 0.0),
        ("fusion", "add", "nmi", 0.3, 0.1, 0.4),
    ],
    columns=["group", "name", "metric", "value", "low", "high"],
)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_cut_off_or_too_small(name: str) -> None:
    before = dict(matplotlib.rcParams)
    figure = CASES[name]()
    drawn(figure)
    assert dict(matplotlib.rcParams) == before
    assert not plt.get_fignums()
    assert figure.get_figwidth() <= 11
    page = figure.bbox.padded(1)
    for text in shown_texts(figure):
        assert text.get_fontsize() >= 8, text
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1, (text, box)
        assert page.y0 <= box.y0 and box.y1 <= page.y1, (text, box)
    images = [ax.get_window_extent() for ax in figure.axes if ax.get_images()]
    for legend, image in itertools.product(figure.findobj(Legend), images):
        assert not legend.get_window_extent().overlaps(image)
    titles = [ax.title.get_window_extent() for ax in figure.axes if ax.get_title()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(titles, 2))


@pytest.mark.parametrize("name", DIAGRAMS)
def test_a_diagram_leads_from_both_sensors_through_every_box(name: str) -> None:
    title, boxes, arrows = DIAGRAMS[name]
    figure = figures.diagram_figure(name)
    drawn(figure)
    patches = [text.get_bbox_patch() for text in panel(figure, title).texts if text.get_text()]
    frames = [patch.get_window_extent() for patch in patches]
    assert len(frames) == len(boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(frames, 2))
    reached = [text for text in boxes if boxes[text][0] == 0]
    assert [text[:3] for text in reached] == ["opt", "SAR"]
    for text in reached:  # grows
        ends = arrows[text].split(" | ") if text in arrows else []
        reached += [end for end in ends if end not in reached]
    assert sorted(reached) == sorted(boxes)
    assert patches[0].get_edgecolor() == to_rgba(COLORS[0])


def test_an_unknown_diagram_is_refused() -> None:
    with pytest.raises(ConfigError, match="diagram"):
        figures.diagram_figure("unet")


# ---- colours ---------------------------------------------------------------------------------


def test_label_image_has_the_colours_of_the_table() -> None:
    ids = np.array([[row.id for row in CLASSES] + [IGNORE]])
    picture = figures.label_image(ids, CLASSES)
    assert picture.dtype == np.uint8
    assert picture[0].tolist() == [list(row.rgb) for row in CLASSES] + [list(IGNORE_RGB)]
    assert not {IGNORE_RGB, RIGHT_RGB, WRONG_RGB} & {row.rgb for row in CLASSES}


@pytest.mark.parametrize("stranger", [7, -1, 300])
def test_label_image_refuses_ids_without_a_row(stranger: int) -> None:
    with pytest.raises(DataError, match=rf"\[{stranger}\].*\[0, 1, 2, 3, 4, 5, 6\]"):
        figures.label_image(np.array([[0, stranger]]), CLASSES)


def test_stretch_equals_numpy_percentiles_of_valid_pixels() -> None:
    band = RNG.integers(0, 255, (50, 70)).astype(np.uint8)
    valid = RNG.random(band.shape) > 0.3
    low, high = np.percentile(band[valid], [2, 98])
    expected = np.clip((band[valid].astype(float) - low) / (high - low), 0, 1)
    result = figures.stretch(band, valid)
    np.testing.assert_allclose(result[valid], expected, atol=1e-6)
    assert np.isnan(result[~valid]).all()
    with_gaps = np.where(valid, band, np.nan).astype(np.float32)
    np.testing.assert_allclose(figures.stretch(with_gaps)[valid], expected, atol=1e-6)


def test_composite_picks_bands_and_greys_what_is_missing() -> None:
    optical = RNG.normal(0, 1, (4, 9, 9))
    optical[2, 0, 0] = np.nan
    picture = figures.optical_composite(optical, (2, 1, 0))
    for channel, band in enumerate((2, 1, 0)):
        np.testing.assert_array_equal(picture[1:, :, channel], figures.stretch(optical[band])[1:])
    np.testing.assert_allclose(picture[0, 0] * 255, IGNORE_RGB)
    np.testing.assert_array_equal(
        figures.false_color(optical, 3, 2, 1), figures.optical_composite(optical, (3, 2, 1))
    )
    grey = figures.sar_image(optical[3])
    assert (grey == grey[..., :1]).all() and grey.min() == 0 and grey.max() == 1
    nowhere = figures.optical_composite(optical, (0, 1, 3), np.zeros((9, 9), bool))
    np.testing.assert_allclose(nowhere * 255, np.broadcast_to(IGNORE_RGB, (9, 9, 3)))
    constant = figures.sar_image(np.full((4, 4), 7.0))
    assert np.isfinite(constant).all()


def test_cluster_classes_can_be_told_apart() -> None:
    rows = figures.cluster_classes(28)
    assert [row.id for row in rows] == list(range(28)) and rows[3].name == "cluster 3"
    assert 0 not in {row.code for row in rows}
    colors = np.array([row.rgb for row in rows] + [IGNORE_RGB])
    gaps = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + 999 * np.eye(29)
    assert gaps[:8, :8].min() > 60 and gaps.min() > 15


def test_error_image_right_wrong_ignored() -> None:
    picture = error_image(np.array([[1, 2, 3, 255]]), np.array([[1, 1, IGNORE, 1]]))
    assert [tuple(p) for p in picture[0].tolist()] == [
        RIGHT_RGB,
        WRONG_RGB,
        IGNORE_RGB,
        IGNORE_RGB,
    ]


# ---- panels ----------------------------------------------------------------------------------


def test_scene_figure_shows_label_colours_and_names_only_present_classes() -> None:
    figure = CASES["scene"]()
    assert legend_names(figure) == PRESENT
    pixel = look(figure)
    for row in CLASSES[:5]:
        assert pixel("label", 20, 12 * row.id + 6) == row.rgb
    patches = {p.get_label(): p.get_facecolor()[:3] for p in figure.legends[0].get_patches()}
    assert patches == {row.name: tuple(c / 255 for c in row.rgb) for row in CLASSES[:5]}


def test_label_colours_are_not_mixed_at_borders() -> None:
    label = RNG.choice([0, 3, 4], (600, 900))  # finer than the pixels of the panel
    figure = figures.scene_figure(np.zeros((600, 900, 3)), None, label, classes=CLASSES)
    picture = drawn(figure)
    box = panel(figure, "label").get_window_extent().padded(-3)
    rows = slice(picture.shape[0] - int(box.y1), picture.shape[0] - int(box.y0))
    colors = np.unique(picture[rows, int(box.x0) : int(box.x1)].reshape(-1, 3), axis=0)
    assert {tuple(color) for color in colors.tolist()} == {CLASSES[i].rgb for i in (0, 3, 4)}


def test_missing_label_leaves_its_panels_out() -> None:
    nothing = np.full_like(LABEL, IGNORE)
    for label in (None, nothing):
        scene = figures.scene_figure(RGB, LOG, label, classes=CLASSES)
        assert [ax.get_title() for ax in scene.axes] == ["optical", "SAR (log intensity)"]
        scene = figures.map_figure(RGB, LOG, PREDICTION, RGB[..., 0], classes=CLASSES, label=label)
        titles = [ax.get_title() for ax in scene.axes]
        assert titles == ["optical", "SAR (log intensity)", "prediction", "confidence"]
        assert legend_names(scene) == PRESENT


@pytest.mark.parametrize("pixel_m", [0.5, 4.29, 10, 30, 333.0])
@pytest.mark.parametrize("width", [64, 5556])
def test_scale_bar_is_a_round_number_of_metres(pixel_m: float, width: int) -> None:
    _, axes = new_panels(1, 1, 4, 4)
    add_scale_bar(axes[0, 0], (width, width), pixel_m)
    (bar,) = [p for p in axes[0, 0].patches if p.get_gid() == "scale bar"]
    metres = bar.get_width() * pixel_m
    (text,) = [t.get_text() for t in axes[0, 0].texts]
    number, unit = text.split()
    assert float(number) * {"m": 1, "km": 1000}[unit] == pytest.approx(metres)
    assert f"{metres:e}"[0] in "125" and float(f"{metres:e}"[:8]) in (1, 2, 5)
    assert 0.13 * width < bar.get_width() <= 0.35 * width


def test_round_length_against_a_list() -> None:
    lengths = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]
    for limit in [0.01, 0.9999, 1, 1.5, 2, 4.99, 5, 7, 999, 1000, 12345]:
        assert round_length(limit) == pytest.approx(max(x for x in lengths if x <= limit + 1e-12))


def test_pixel_width_on_the_ground() -> None:
    sheet = Affine(0.25 / 5556, 0, 108, 0, -1 / 6 / 3704, 31 + 1 / 12)
    width = figures.pixel_width_m(Grid(3704, 5556, CRS.from_epsg(4326), sheet))
    assert width == pytest.approx(4.29, abs=0.01)  # a WHU-OPT-SAR sheet at 31 degrees north
    mercator = Grid(2, 2, CRS.from_epsg(3857), Affine(10, 0, 0, 0, -10, 4_028_802))  # 34 north
    assert figures.pixel_width_m(mercator) == pytest.approx(10 * np.cos(np.radians(34)), rel=0.002)
    utm = Grid(9, 9, CRS.from_epsg(32633), Affine(10, 0, 5e5, 0, -10, 4e6))
    assert figures.pixel_width_m(utm) == pytest.approx(10, rel=0.003)
    assert figures.pixel_width_m(Grid(9, 9, None, Affine.identity())) is None


def test_big_pictures_keep_their_coordinates_and_colours() -> None:
    label = np.zeros((3000, 4500), np.uint8)
    label[:, 3000:] = 3
    figure = figures.scene_figure(
        np.zeros((3000, 4500, 3), np.float32), None, label, classes=CLASSES
    )
    (image,) = panel(figure, "label").get_images()
    assert max(image.get_array().shape) <= 2000
    pixel = look(figure)
    assert pixel("label", 1500, 2950) == CLASSES[0].rgb
    assert pixel("label", 1500, 3050) == CLASSES[3].rgb


# ---- data ------------------------------------------------------------------------------------


def test_histogram_integrates_to_one_without_gaps_between_8_bit_levels() -> None:
    amplitude = RNG.integers(10, 120, 20_000).astype(float)
    figure = figures.histogram_figure({"SAR": 2 * np.log(amplitude)}, log_label="log amplitude")
    for ax in figure.axes:
        (steps,) = [c for c in ax.collections if isinstance(c, PolyCollection)]
        (outline,) = steps.get_paths()
        x, y = outline.vertices.T
        edges = np.unique(x)
        middles = (edges[1:] + edges[:-1]) / 2
        inside = [outline.contains_points(np.stack([middles, 0 * middles + h], 1)) for h in y]
        values = np.where(inside, y[:, None] * (1 + 1e-6), 0).max(axis=0)
        assert (values > 0).all()
        assert values @ np.diff(edges) == pytest.approx(1)
    assert figure.axes[1].get_xlabel() == "log amplitude"
    assert edges[0] == pytest.approx(20, abs=1) and edges[-1] == pytest.approx(
        20 * np.log10(119), abs=1
    )


def test_class_shares_in_percent_and_class_colours() -> None:
    bars = CASES["shares"]().axes[0].patches
    np.testing.assert_allclose([bar.get_width() for bar in bars], 100 * np.arange(7) / 21)
    assert [bar.get_facecolor()[:3] for bar in bars] == [
        tuple(c / 255 for c in row.rgb) for row in LONG
    ]


def test_spectra_are_mean_and_std_of_each_class() -> None:
    pixels = RNG.normal(3, 2, (2, H, W))
    pixels[0, 10, 10] = np.nan
    sensors = {"one": {"a": pixels[0], "b": pixels[1]}, "other": {"c": pixels[1] * 1000}}
    figure = figures.spectra_figure(sensors, LABEL, CLASSES)
    assert legend_names(figure) == PRESENT
    for ax, bands in zip(figure.axes, sensors.values(), strict=True):
        for row, container in zip(CLASSES, ax.containers, strict=False):
            values = np.stack([band[row.id == LABEL] for band in bands.values()])
            line, _, (spans,) = container.lines
            np.testing.assert_allclose(line.get_ydata(), np.nanmean(values, axis=1))
            lengths = [segment[1, 1] - segment[0, 1] for segment in spans.get_segments()]
            np.testing.assert_allclose(lengths, 2 * np.nanstd(values, axis=1))


def test_realism_dots_stand_where_the_values_do_in_tolerances() -> None:
    easy, realistic = CASES["realism"]().axes
    assert easy.get_title() == "easy: 1 of 4 within tolerance"
    assert realistic.get_title() == "realistic: 1 of 2 within tolerance"
    (dots,) = [c for c in easy.collections if isinstance(c, PathCollection)]
    x, y = dots.get_offsets().T
    assert x.tolist() == pytest.approx([0.5, -1.5, 3, 3])
    assert y.round().tolist() == [0, 0, 1, 1]
    assert [len(path.vertices) > 10 for path in dots.get_paths()] == [True, False, False, False]
    colors = [to_hex(color).upper() for color in dots.get_facecolors()]
    assert colors == [COLORS[0], COLORS[1], COLORS[1], COLORS[1]]
    assert [text.get_text() for text in easy.texts] == ["1/2", "0/2"]


def test_touching_scenes_are_marked_in_their_middle() -> None:
    (marked,) = [x for x in CASES["split, touching"]().axes[0].lines if x.get_marker() == "X"]
    assert marked.get_xydata()[0] == pytest.approx((108.375, 31.1))
    assert marked.get_label().endswith("(1)")


def test_split_boxes_lie_where_the_scenes_do() -> None:
    figure = CASES["split"]()
    (ax,) = figure.axes
    boxes = [p.get_bbox().extents.tolist() for p in ax.patches if isinstance(p, Rectangle)]
    assert boxes == [list(BOUNDS[name]) for name in "abc"]
    assert legend_names(figure) == ["train (2)", "test (1)"]


# ---- learning --------------------------------------------------------------------------------


def test_views_mark_the_same_tokens_in_all_four_panels() -> None:
    given = batch()
    rows = np.array(figures.views_figure(*as_arrays(given), (2, 1, 0)).axes).reshape(2, 4)
    names = ["optical, view 1", "SAR, view 1", "optical, view 2", "SAR, view 2"]
    assert [ax.get_title() for ax in rows[0]] == names
    # What the network samples at a place is what stands in the picture under its dot.
    where = torch.stack(torch.meshgrid(torch.arange(16), torch.arange(20), indexing="ij"))
    for row, shown in enumerate((6, 3)):  # of nine tokens six are drawn, of which all are seen
        for column, places in enumerate(
            (given.points_a, given.points_a, given.points_b, given.points_b)
        ):
            dots = np.array([line.get_xydata()[0] for line in rows[row, column].lines])  # (x, y)
            assert len(dots) == shown
            sampled = sample_tokens(where[None].float() + 0.5, places[row : row + 1])[0].numpy()
            distances = np.abs(dots[:, None, ::-1] - sampled[given.visible[row]]).sum(-1)
            assert distances.min(axis=1).max() < 1e-4
        links = [a for a in rows[row, 2].get_children() if isinstance(a, ConnectionPatch)]
        assert len(links) == shown
        for link in links:  # the second view is turned
            np.testing.assert_allclose(np.add(link.xy1, link.xy2), (20, 16), atol=1e-5)


def test_curves_stand_at_equal_distances_over_their_numbers() -> None:
    rows = [("net", steps, "acc", steps / 4000) for steps in (0, 600, 3000)]
    table = pd.DataFrame(rows, columns=["name", "steps", "metric", "mean"]).assign(std=np.nan)
    lines = {"statistics": {"acc": 0.5}}
    figure = figures.curves_figure(table, {"acc": "A"}, x="steps", label="steps", lines=lines)
    (ax,) = figure.axes
    curve, line = ax.lines
    np.testing.assert_allclose(curve.get_xydata(), [[0, 0], [1, 0.15], [2, 0.75]])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "600", "3000"]
    assert set(line.get_ydata()) == {0.5}
    assert sorted(legend_names(figure)) == ["net", "statistics"]


def test_despeckle_panels_share_one_grey_scale() -> None:
    before = RNG.normal(0, 2, (20, 20))
    figure = figures.despeckle_figure(before, before / 2, enl={"after": 41.26})
    first, second = (ax.get_images()[0].get_array()[..., 0] for ax in figure.axes[:2])
    ratio = figure.axes[2].get_images()[0].get_array()
    np.testing.assert_allclose(ratio, np.exp(before) / np.exp(before / 2))
    low, high = np.percentile(np.concatenate([before, before / 2]), (2, 98))
    np.testing.assert_allclose(first, np.clip((before - low) / (high - low), 0, 1), atol=1e-6)
    np.testing.assert_allclose(second, np.clip((before / 2 - low) / (high - low), 0, 1), atol=1e-6)
    assert [ax.get_title() for ax in figure.axes] == [
        "before",
        "after (ENL 41.3)",
        "ratio image",
    ]


def test_training_draws_chance_levels_and_skips_missing_terms() -> None:
    figure = CASES["training"]()
    loss = panel(figure, "loss terms")
    assert legend_names(figure) == [
        "intra SAR",
        "fused",
        "all embeddings equal, ln(1+Q) = 7.62",
        "random unit embeddings = 9.25",
    ]
    by_name = {line.get_label(): line for line in loss.lines}
    level = by_name["all embeddings equal, ln(1+Q) = 7.62"]
    assert isinstance(level, Line2D) and set(level.get_ydata()) == {7.62}
    fused = by_name["fused"]
    assert list(fused.get_xdata()) == list(range(0, 100, 5)) and set(fused.get_ydata()) == {6.0}
    smooth = by_name["intra SAR"]  # running mean of 4 of a straight line, drawn at its last step
    np.testing.assert_allclose(smooth.get_ydata(), 7 - (smooth.get_xdata() - 1.5) / 50)
    (monitor,) = [ax for ax in figure.axes if ax.get_title().startswith("embedding std")]
    assert {0.125} in [set(line.get_ydata()) for line in monitor.lines]
    assert {0.0375} in [set(line.get_ydata()) for line in monitor.lines]
    assert {0.9} in [set(line.get_ydata()) for line in panel(figure, "mean cosine").lines]
    assert not panel(figure, "top-1 accuracy").lines  # no row has it, and no level is asked for


def test_a_log_of_one_row_is_a_dot() -> None:
    loss = panel(figures.training_figure(RECORDS[:1], ["fused"]), "loss terms")
    (line,) = loss.lines
    assert line.get_marker() == "o" and line.get_xydata().tolist() == [[0, 6]]


def test_attention_of_a_network_is_that_of_its_middle_token() -> None:
    model = load_config("tiny").model
    network = UmsfNet(model, load_layout("whu-opt-sar"), 4).eval()
    window = {"optical": torch.randn(1, 4, 16, 16), "sar": torch.randn(1, 1, 16, 16)}
    window["sar_log_std"] = torch.ones(1, 1, 1, 1)
    figure = figures.attention_figure(RGB, **central_attention(network, window))
    with torch.no_grad():
        maps = network.features(window)
        _, aux = network.fusion(maps["optical"], maps["sar"], need_weights=True)
    for head in range(model.heads):
        (image,) = panel(figure, f"head {head + 1}").get_images()
        expected = aux["attention_optical"][0, head, 2 * 4 + 2].view(4, 4)
        np.testing.assert_allclose(image.get_array(), expected, rtol=1e-6)
    (gate,) = panel(figure, "gate").get_images()
    np.testing.assert_allclose(gate.get_array(), aux["gates"][0, 0], rtol=1e-6)


def test_heads_of_attention_share_one_scale_and_sar_stands_beside() -> None:
    figure = CASES["attention, SAR beside"]()
    images = [panel(figure, f"head {head + 1}").get_images()[0] for head in range(8)]
    assert {image.get_clim() for image in images} == {(0, 4 / 16)}
    assert panel(figure, "SAR").get_images() and panel(figure, "SAR").patches


def test_attention_maps_keep_the_token_grid() -> None:
    figure = CASES["attention"]()
    for head in range(8):
        ax = panel(figure, f"head {head + 1}")
        np.testing.assert_array_equal(ax.get_images()[0].get_array(), ATTENTION[head].reshape(4, 4))
        (mark,) = [p for p in ax.patches if isinstance(p, Rectangle)]
        assert mark.get_xy() == (2, 1)
    (mark,) = panel(figure, "optical").patches
    assert mark.get_bbox().extents.tolist() == [20, 10, 30, 20]  # 10 px a token


# ---- results ---------------------------------------------------------------------------------


def test_confusion_is_normalised_by_class_and_frames_the_matches() -> None:
    mapping = np.array([1, 0, 2, -1])
    figure = figures.confusion_figure(TABLE, CLASSES[:3], mapping)
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == [
        "1 → farmland",
        "0 → city",
        "2 → village",
        "3 → unmatched",
    ]
    texts = {t.get_position(): t.get_text() for t in ax.texts}  # (column, row) of the middle
    totals = TABLE.sum(axis=0)
    for column, cluster in enumerate((1, 0, 2, 3)):
        for row in range(3):
            count = TABLE[cluster, row]
            expected = f"{100 * count / totals[row]:.0f} %\n{_short(count)}" if count else ""
            assert texts[column + 0.5, row + 0.5] == expected
    (cells,) = ax.collections
    np.testing.assert_allclose(cells.get_array(), (100 * TABLE[[1, 0, 2, 3]] / totals).T)
    frames = [p.get_xy() for p in ax.patches if isinstance(p, Rectangle)]
    assert frames == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0k"), (9949, "9.9k"), (9950, "10k"), (999_499, "999k")]
    + [(999_500, "1.0M"), (3_440_000, "3.4M"), (20_579_424, "21M")],
)
def test_counts_fit_their_cells(count: int, text: str) -> None:
    assert _short(count) == text


def test_tsne_points_have_the_colours_of_their_ids() -> None:
    cluster, label = np.arange(80) % 7, np.where(np.arange(80) % 9, np.arange(80) % 5, IGNORE)
    clusters = figures.cluster_classes(7)
    figure = figures.tsne_figure(POINTS, cluster, label, clusters=clusters, classes=CLASSES)
    for title, ids, table in (
        ("SAR tokens by cluster", cluster, clusters),
        ("SAR tokens by class", label, CLASSES),
    ):
        _, points = [c for c in panel(figure, title).collections if isinstance(c, PathCollection)][
            :2
        ]
        known = ids != IGNORE
        np.testing.assert_array_equal(points.get_offsets(), POINTS["SAR"][known])
        expected = [np.array(table[i].rgb) / 255 for i in ids[known]]
        np.testing.assert_allclose(points.get_facecolors()[:, :3], expected)
    names = [[t.get_text() for t in ax.get_legend().get_texts()] for ax in figure.axes[-2:]]
    assert names == [[row.name for row in clusters], PRESENT]


def test_map_figure_colours_errors_and_legend() -> None:
    figure = figures.map_figure(
        RGB, LOG, PREDICTION, RGB[..., 0], classes=CLASSES, label=LABEL, pixel_m=10
    )
    assert legend_names(figure) == [*PRESENT, "right", "wrong", "no label"]
    pixel = look(figure)
    assert pixel("prediction", 20, 20) == CLASSES[PREDICTION[20, 20]].rgb
    assert pixel("errors", 20, 18) == RIGHT_RGB
    assert pixel("errors", 20, 13) == WRONG_RGB  # the prediction lags by two pixels
    assert pixel("errors", 1, 1) == IGNORE_RGB
    confidence = panel(figure, "confidence").get_images()[0]
    assert confidence.get_clim() == (0, 1)


def test_variogram_curves_and_radius() -> None:
    ax = panel(
        figures.variogram_figure(CURVES, [5, 10, 40, 80], radius_m=30), "near things are more alike"
    )
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["optical", "SAR", "R = 30 m"]
    assert lines["optical"].get_xydata().tolist() == [[5, 0.1], [10, 0.5], [40, 0.9], [80, 1.0]]
    assert list(lines["R = 30 m"].get_xdata()) == [30, 30] and ax.get_ylim()[0] == 0


def test_neighbours_lie_where_they_were_drawn_and_show_their_windows() -> None:
    elsewhere = NEAR.astype(float)
    elsewhere[1, 2] = np.nan  # in the next scene
    figure = figures.neighbours_figure(RGB, ANCHORS, elsewhere, 8, radius_px=(10, 12))
    ground = figure.axes[0]
    box, disc = ground.patches[:2]
    assert box.get_bbox().bounds == (6, 4, 8, 8)  # left, top
    assert disc.center == (10, 8) and (disc.width, disc.height) == (24, 20)
    assert ground.lines[0].get_xydata().tolist() == [[10, 8], [8, 11], [15, 4]]  # column, row
    assert ground.get_xlim() == (0, W) and ground.get_ylim() == (H, 0)
    crops = [ax.get_images()[0].get_array() for ax in figure.axes[1:]]
    assert len(crops) == 4 + 3  # the last anchor's third neighbour is not here
    assert np.array_equal(crops[0], RGB[4:12, 6:14])
    assert np.array_equal(crops[2], RGB[7:15, 4:12])


def test_probe_bars_per_method_and_split() -> None:
    figure = figures.probe_figure(ACCURACY, JUDGES)
    ax = panel(figure, "random forest")
    widths = [
        [bar.get_width() for bar in bars] for bars in ax.containers if hasattr(bars, "patches")
    ]
    assert widths == [[0.9, 0.99], [0.6, 0.7]]
    spans = [c.get_segments() for c in ax.collections if isinstance(c, LineCollection)]
    for bars, errors in zip(ax.containers[:2], spans, strict=True):
        for bar, ((low, y), (high, _)) in zip(bars, errors, strict=True):
            assert bar.get_y() < y < bar.get_y() + bar.get_height()
            assert (low, high) == pytest.approx((bar.get_width() - 0.05, bar.get_width() + 0.05))
    assert legend_names(figure) == ["random patches held out", "scenes held out"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["local statistics", "neighbours"]


def test_a_method_without_one_split_keeps_its_other_bar() -> None:
    figure = figures.probe_figure(ACCURACY.drop(("local statistics", "scenes held out")), JUDGES)
    ax = panel(figure, "random forest")
    assert [bar.get_width() for bar in ax.patches] == [0.9, 0.99, 0.7]
    spans = [c.get_segments() for c in ax.collections if isinstance(c, LineCollection)]
    assert [np.mean(span[:, 0]) for part in spans for span in part] == pytest.approx(
        [0.9, 0.99, 0.7]
    )
    assert spans[1][0][0, 1] == pytest.approx(1.2)  # beside the bar of the second method


def test_scores_bars_intervals_and_constant_line() -> None:
    acc, nmi = CASES["scores"]().axes
    assert [bar.get_width() for bar in acc.patches] == [0.4, 0.99]
    (line,) = acc.lines
    assert set(line.get_xdata()) == {0.407} and not nmi.lines
    assert [t.get_text() for t in nmi.texts] == ["0.200"]  # the other method has no NMI
    drawn(acc.figure)
    right = acc.transData.transform((0.407, 0))[0]
    assert all(text.get_window_extent().x0 > right for text in acc.texts)  # no line strikes them


def test_intervals_stand_in_the_rows_that_carry_their_names() -> None:
    acc, nmi = CASES["intervals"]().axes
    names = [tick.get_text() for tick in acc.get_yticklabels()]
    long = "umsf no_pretraining, a long name"
    assert names == ["sensors", "optical", long, "fusion", "add"]
    bold = [tick.get_fontweight() == "bold" for tick in acc.get_yticklabels()]
    assert bold == [name in ("sensors", "fusion") for name in names]
    row = dict(zip(names, acc.get_yticks(), strict=True))
    for ax, metric in ((acc, "acc"), (nmi, "nmi")):
        wanted = INTERVALS[INTERVALS.metric == metric]
        (dots,) = [c for c in ax.collections if isinstance(c, PathCollection)]
        found = {(x, y) for x, y in dots.get_offsets().tolist()}
        assert found == {(r.value, row[r["name"]]) for _, r in wanted.iterrows()}
        (bars,) = [c for c in ax.collections if isinstance(c, LineCollection)]
        ends = [(low, high, y) for (low, y), (high, _) in np.array(bars.get_segments()).tolist()]
        known = wanted.dropna()
        places = [row[name] for name in known["name"]]
        assert ends == list(zip(known.low, known.high, places, strict=True))
        for drawn_in, rows in ((dots.get_facecolors(), wanted), (bars.get_colors(), known)):
            colors = [to_hex(color).upper() for color in drawn_in]
            assert colors == [COLORS[group == "fusion"] for group in rows.group]
    assert legend_names(CASES["intervals"]()) == ["equal to ours"]


def test_without_labels_a_sentence_stands_for_the_figure() -> None:
    nothing = np.full_like(LABEL, IGNORE)
    model = load_config("tiny", overrides="model.fusion=add").model
    network = UmsfNet(model, load_layout("pairs"))
    made = [
        figures.class_shares_figure({}, ()),
        figures.spectra_figure({"optical": {"red": RGB[:, :, 0]}}, nothing, ()),
        figures.scores_figure(SCORES[:0], constant={"acc": np.nan}),
        figures.per_class_f1_figure({}, ()),
        figures.intervals_figure(INTERVALS[:0], SCORE_TITLES, label=""),
        figures.curves_figure(SCALE[:0], SCORE_TITLES),
        figures.probe_figure(ACCURACY[:0], JUDGES),
        figures.confusion_figure(np.zeros((0, 0), int), (), np.zeros(0, int)),
        figures.attention_figure(RGB, **central_attention(network, {})),
    ]
    for figure in made:
        (ax,) = figure.axes
        (sentence,) = ax.texts
        drawn(figure)
        assert not ax.axison and sentence.get_window_extent().x1 <= figure.bbox.x1
        assert print_figure(figure)  # as a notebook shows it


def test_tsne_without_labels_has_one_column() -> None:
    nothing = np.full(80, IGNORE)
    figure = figures.tsne_figure(
        POINTS, np.arange(80) % 7, nothing, clusters=figures.cluster_classes(7)
    )
    assert [ax.get_title() for ax in figure.axes] == [
        f"{name} tokens by cluster" for name in POINTS
    ]


def test_f1_heatmap_leaves_absent_classes_empty() -> None:
    figure = CASES["f1"]()
    texts = figure.axes[0].texts
    assert [t.get_text() for t in texts] == [f"{i / 7:.2f}" for i in range(7)]
    assert {t.get_position()[1] for t in texts} == {1.5}
    cells = figure.axes[0].collections[0].get_array()
    np.testing.assert_allclose(cells.filled(np.nan), [[np.nan] * 7, np.arange(7) / 7])
