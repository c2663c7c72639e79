"""Diagrams of the networks that fuse two sensors."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from ..config import check_choice
from .style import COLORS, new_figure, styled

# Network -> title, text of each box -> (column, row), text -> texts that it leads to, joined by |.
DIAGRAMS: dict[str, tuple[str, dict[str, tuple[float, float]], dict[str, str]]] = {
    "levels": (
        "concat, add, attention",
        {
            "optical image": (0, 0),
            "SAR image": (0, 2),
            "optical maps,\nfour levels": (1, 0),
            "SAR maps,\nfour levels": (1, 2),
            "fuse each level": (2, 1),
            "pool the coarsest": (3, 2),
            "add each level\nto the next finer": (3.2, 1),
            "classes": (4.3, 1),
        },
        {
            "optical image": "optical maps,\nfour levels",
            "SAR image": "SAR maps,\nfour levels",
            "optical maps,\nfour levels": "fuse each level",
            "SAR maps,\nfour levels": "fuse each level",
            "fuse each level": "add each level\nto the next finer | pool the coarsest",
            "pool the coarsest": "add each level\nto the next finer",
            "add each level\nto the next finer": "classes",
        },
    ),
    "asanet": (
        "ASANet, one level",
        {
            "optical map": (0, 0),
            "SAR map": (0, 2),
            "SFM: largest o - s,\nlargest s - o": (1, 1),
            "optical map x gain,\nnormalised": (2, 0),
            "SAR map x gain,\nnormalised": (2, 2),
            "CFM: weigh channels,\nchoose sensors": (3.2, 1),
            "optical: next stage": (3.3, 0),
            "SAR: next stage": (3.3, 2),
            "UPerNet": (4.4, 1),
        },
        {
            "optical map": "SFM: largest o - s,\nlargest s - o",
            "SAR map": "SFM: largest o - s,\nlargest s - o",
            "SFM: largest o - s,\nlargest s - o": (
                "optical map x gain,\nnormalised | SAR map x gain,\nnormalised"
            ),
            "optical map x gain,\nnormalised": (
                "optical: next stage | CFM: weigh channels,\nchoose sensors"
            ),
            "SAR map x gain,\nnormalised": (
                "SAR: next stage | CFM: weigh channels,\nchoose sensors"
            ),
            "CFM: weigh channels,\nchoose sensors": "UPerNet",
        },
    ),
    "amm_fusenet": (
        "AMM-FuseNet",
        {
            "optical levels": (0, 0),
            "SAR levels": (0, 3),
            "optical: 48 channels, ECA": (1.6, 0),
            "optical finest: DenseASPP": (1.6, 1),
            "SAR finest: DenseASPP": (1.6, 2),
            "SAR: 48 channels, ECA": (1.6, 3),
            "concatenate": (3, 1.5),
            "classes": (3.9, 1.5),
        },
        {
            "optical levels": "optical: 48 channels, ECA | optical finest: DenseASPP",
            "SAR levels": "SAR: 48 channels, ECA | SAR finest: DenseASPP",
            "optical: 48 channels, ECA": "concatenate",
            "optical finest: DenseASPP": "concatenate",
            "SAR finest: DenseASPP": "concatenate",
            "SAR: 48 channels, ECA": "concatenate",
            "concatenate": "classes",
        },
    ),
    "ref_net": (
        "REF-Net, one level",
        {
            "optical level": (0, 0),
            "SAR level": (0, 2),
            "o - s": (0.9, 1),
            "shared VSS block": (2, 0),
            "VSS block of its own": (2, 1),
            "the same VSS block": (2, 2),
            "mix": (3.2, 0),
            "add, residual block": (4.1, 1),
            "decoder": (5.2, 1),
        },
        {
            "optical level": "shared VSS block | o - s",
            "SAR level": "the same VSS block | o - s",
            "o - s": "VSS block of its own",
            "shared VSS block": "mix",
            "the same VSS block": "mix",
            "mix": "add, residual block",
            "VSS block of its own": "add, residual block",
            "add, residual block": "decoder",
        },
    ),
}


@styled
def diagram_figure(network: str) -> Figure:
    """Draw how data flow through a network: a key of ``DIAGRAMS``.

    Boxes of the optical and of the SAR stream have the colours of the sensors.

    Raises:
        ConfigError: there is no such diagram.
    """
    check_choice("diagram", network, DIAGRAMS)
    title, boxes, arrows = DIAGRAMS[network]
    columns, rows = ([place[axis] for place in boxes.values()] for axis in (0, 1))
    figure = new_figure(10.5, 1.2 + 0.55 * max(rows))
    ax = figure.add_subplot()
    drawn = {}
    for text, (column, row) in boxes.items():
        color = dict(zip(("opt", "SAR"), COLORS, strict=False)).get(text[:3], "0.35")
        frame: Any = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": color}
        drawn[text] = ax.text(column, -row, text, ha="center", va="center", bbox=frame)
    for start, ends in arrows.items():
        for end in ends.split(" | "):
            first, last = drawn[start], drawn[end]
            look: Any = {"arrowstyle": "-|>", "color": "0.35", "shrinkA": 1, "shrinkB": 1}
            look |= {"patchA": first.get_bbox_patch(), "patchB": last.get_bbox_patch()}
            ax.annotate("", last.get_position(), first.get_position(), arrowprops=look)
    ax.set(xlim=(-0.6, max(columns) + 0.6), ylim=(-max(rows) - 0.6, 0.6), xticks=[], yticks=[])
    ax.set_axis_off()
    ax.set_title(title)
    return figure
