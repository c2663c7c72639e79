"""A pretraining batch: two views of each window, and where on the ground they lie.

Geometry is drawn and matched on the CPU. The overlap of two views decides the shapes of later
tensors, and reading it from a GPU would make the CPU wait. Pixels and noise stay on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..config import ViewConfig
from ..models.speckle import Share, noise_source
from ..run import to_device
from ..training.distributed import own_rows, rank, world_size
from .augmentations import View, apply_affine, draw_geometry, draw_matches, show_view

# Row, col ``(B, n, 2)`` int64 px inside each of B windows -> ``(B, n)`` bool, all on the CPU.
ValidAt = Callable[[Tensor], Tensor]
Places = tuple[Tensor, Tensor, Tensor]  # scene or plane, row, col of window centres, (B,) each


@dataclass(frozen=True)
class Batch:
    """Two views of a batch of windows and the ground positions both see.

    The views hold the windows ``rows`` of this process. All other tensors describe the windows of
    all processes and are on the CPU.

    Attributes:
        first: view of the windows.
        second: view of the same windows or of neighbours.
        scene: ``(B,)`` scene, or plane of scenes that lie side by side (``neighbours.ScenePlane``);
            all rows and columns below are counted on it, in px.
        centre: ``(B, 2)`` row, col of the middle of the first windows.
        second_centre: ``(B, 2)`` row, col of the middle of the second windows.
        points_a: ``(B, n, 2)`` positions (x, y) in coordinates of the first view.
        points_b: ``(B, n, 2)`` the same positions in coordinates of the second view.
        visible: ``(B, n)`` bool, seen by both views and on valid ground.
        shown: ``(B,)`` bool, both views show valid ground.
        window_px: side of a window.
        rows: windows of this process.
    """

    first: View
    second: View
    scene: Tensor
    centre: Tensor
    second_centre: Tensor
    points_a: Tensor
    points_b: Tensor
    visible: Tensor
    shown: Tensor
    window_px: int
    rows: slice = field(default_factory=lambda: slice(None))

    def own(self) -> Batch:
        """Return the batch with the windows of this process only."""
        names = ["scene", "centre", "second_centre", "points_a", "points_b", "visible"]
        return replace(self, **{n: getattr(self, n)[self.rows] for n in [*names, "shown"]})


def as_arrays(batch: Batch) -> tuple[list[dict[str, np.ndarray]], list[list[np.ndarray]]]:
    """Convert a batch to the arguments ``views`` and ``points`` of ``figures.views_figure``."""
    sensors = [role for role in batch.first.images if role in ("optical", "sar")]
    views = [
        {role: view.images[role].cpu().numpy() for role in sensors}
        for view in (batch.first, batch.second)
    ]
    points = [
        [places[visible].numpy() for places, visible in zip(side, batch.visible, strict=True)]
        for side in (batch.points_a, batch.points_b)
    ]
    return views, points


def two_views(
    windows: Sequence[dict[str, Tensor]],
    plane: Tensor,
    corners: tuple[Tensor, Tensor],
    views: ViewConfig,
    *,
    tokens: int,
    generator: torch.Generator,
    valid: tuple[ValidAt, ValidAt] | None = None,
    token_rows: int = 1,
) -> Batch:
    """Draw two views of a batch and the positions that both see.

    Args:
        windows: pixels of both windows of this process; see ``PixelStore.windows``.
        plane: ``(B,)`` scene or plane of the whole batch; see ``Batch``.
        corners: ``(B, 2)`` row, col of the first pixel of the first and the second windows, px.
        views: window size and strengths.
        tokens: n, positions to draw per window.
        generator: CPU generator of all draws; draws on a GPU are seeded from it.
        valid: whether pixels of the first and of the second windows are valid; None if all are.
        token_rows: h, rows and columns of tokens in a view, for ``View.valid``.
    """
    count, size, rows = len(plane), views.window_px, own_rows(len(plane))
    device = next(iter(windows[0].values())).device
    source = Share(noise_source(generator, device), rank(), world_size())
    shown, thetas = [], []
    for pixels in windows:
        thetas.append(draw_geometry(count, views.scale_min, generator))  # (B, 2, 3)
        shown.append(show_view(pixels, thetas[-1][rows], views, source))
    first, second = corners
    shift = (second - first).flip(1) / size * 2  # (B, 2): row, col in px -> (x, y)
    whole = [View({}, theta) for theta in thetas]  # geometry of the windows of all processes
    points_a, points_b, visible = draw_matches(whole[0], whole[1], tokens, generator, shift)
    batch = Batch(
        first=shown[0],
        second=shown[1],
        scene=plane,
        centre=first + size / 2,
        second_centre=second + size / 2,
        points_a=points_a,
        points_b=points_b,
        visible=visible,
        shown=torch.ones(count, dtype=torch.bool),
        window_px=size,
        rows=rows,
    )
    return batch if valid is None else on_valid_ground(batch, thetas, valid, token_rows)


def on_valid_ground(
    batch: Batch, thetas: Sequence[Tensor], valid: Sequence[ValidAt], token_rows: int
) -> Batch:
    """Mark which matched positions, tokens and views of a batch lie on valid ground.

    ``thetas`` is the geometry ``(B, 2, 3)`` of both views; see ``two_views`` for the others.
    """
    centre = (torch.arange(token_rows) + 0.5) / token_rows * 2 - 1  # of each token, in [-1, 1]
    grid = torch.cartesian_prod(centre, centre).flip(1)  # (h w, 2): y, x -> x, y
    grid = grid.expand(len(batch.scene), -1, -1)  # (B, h w, 2)
    sides = (batch.first, batch.points_a), (batch.second, batch.points_b)
    views, visible, shown = [], batch.visible, batch.shown
    for (view, points), theta, valid_at in zip(sides, thetas, valid, strict=True):
        visible = visible & valid_at(pixels_of(theta, points, batch.window_px))  # (B, n)
        tokens = valid_at(pixels_of(theta, grid, batch.window_px))  # (B, h w)
        shown = shown & tokens.any(dim=1)  # (B,)
        maps = tokens[batch.rows].view(-1, token_rows, token_rows)  # (B', h, w)
        views.append(replace(view, valid=maps))
    return replace(batch, first=views[0], second=views[1], visible=visible, shown=shown)


def pixels_of(theta: Tensor, points: Tensor, size: int) -> Tensor:
    """Find the pixels ``(B, n, 2)`` int64 row, col of a window that a view's points lie in."""
    inside = (apply_affine(theta, points).flip(2) + 1) / 2 * size  # (x, y) -> row, col in px
    return inside.long().clamp(0, size - 1)


def footprints(batch: Batch, device: torch.device) -> tuple[Places, Places]:
    """Return plane, row and col ``(B,)`` of the middle of the windows of each view, on the device.

    A window is the footprint of everything that is read from its views: each token may depend on
    the whole view, and a crop stays inside its window however it is turned.
    """
    rows = [batch.scene.float(), *batch.centre.T, *batch.second_centre.T]  # exact: < 2^24
    scene, row, col, second_row, second_col = to_device(torch.stack(rows), device)
    return (scene.long(), row, col), (scene.long(), second_row, second_col)


def window_of_rows(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the window of each matched token ``(M,)`` and of each pooled row ``(B',)``."""
    return (
        to_device(batch.visible.nonzero()[:, 0], device),
        to_device(batch.shown.nonzero()[:, 0], device),
    )
