"""A pretraining batch: two views of each window, and where on the ground they lie.

Geometry is drawn and matched on the CPU. The overlap of two views decides the shapes of later
tensors, and reading it from a GPU would make the CPU wait. Pixels and noise stay on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..config import ViewConfig
from ..models.speckle import Share, noise_source
from ..run import to_device
from ..training.distributed import own_rows, rank, world_size
from .augmentations import View, draw_geometry, draw_matches, show_view
from .momentum import Places


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
        ground: ``(B, n, 2)`` the same positions as row, col.
        visible: ``(B, n)`` bool, seen by both views.
        rows: windows of this process.
    """

    first: View
    second: View
    scene: Tensor
    centre: Tensor
    second_centre: Tensor
    points_a: Tensor
    points_b: Tensor
    ground: Tensor
    visible: Tensor
    rows: slice = field(default_factory=lambda: slice(None))

    def own(self) -> Batch:
        """Return the batch with the windows of this process only."""
        names = ("scene", "centre", "second_centre", "points_a", "points_b", "ground", "visible")
        return replace(self, **{name: getattr(self, name)[self.rows] for name in names})


def as_arrays(batch: Batch) -> tuple[list[dict[str, np.ndarray]], list[list[np.ndarray]]]:
    """Convert a batch to the arguments ``views`` and ``points`` of ``figures.views_figure``."""
    views = [
        {role: images.cpu().numpy() for role, images in view.images.items()}
        for view in (batch.first, batch.second)
    ]
    points = [
        [places[visible].numpy() for places, visible in zip(side, batch.visible, strict=True)]
        for side in (batch.points_a, batch.points_b)
    ]
    return views, points


def two_views(
    windows: Sequence[tuple[dict[str, Tensor], Tensor | None]],
    plane: Tensor,
    corners: tuple[Tensor, Tensor],
    views: ViewConfig,
    *,
    tokens: int,
    generator: torch.Generator,
) -> Batch:
    """Draw two views of a batch and the positions that both see.

    Args:
        windows: pixels of the first and the second windows of this process, each with the std of
            its ln intensity; see ``make_view``.
        plane: ``(B,)`` scene or plane of the whole batch; see ``Batch``.
        corners: ``(B, 2)`` row, col of the first pixel of the first and the second windows, px.
        views: window size and strengths.
        tokens: n, positions to draw per window.
        generator: CPU generator of all draws; draws on a GPU are seeded from it.
    """
    count, size, rows = len(plane), views.window_px, own_rows(len(plane))
    device = next(iter(windows[0][0].values())).device
    source = Share(noise_source(generator, device), rank(), world_size())
    shown, thetas = [], []
    for pixels, log_std in windows:
        thetas.append(draw_geometry(count, views.scale_min, generator))
        shown.append(show_view(pixels, thetas[-1][rows], log_std, views, source))
    first, second = corners
    shift = (second - first).flip(1) / size * 2  # row, col in px -> (x, y)
    one, other = (View({}, theta) for theta in thetas)
    points_a, points_b, ground, visible = draw_matches(one, other, tokens, generator, shift)
    ground = first[:, None] + (ground.flip(2) + 1) / 2 * size  # (x, y) -> row, col in px
    centres = first + size / 2, second + size / 2
    return Batch(shown[0], shown[1], plane, *centres, points_a, points_b, ground, visible, rows)


def places(batch: Batch) -> tuple[Places, Places]:
    """Return scene, row, col of the tokens that both views see, and of the first windows."""
    scene = batch.scene[:, None].expand_as(batch.visible)[batch.visible]  # (B,) -> (B, n) -> (M,)
    row, col = batch.ground[batch.visible].T  # (B, n, 2) -> (M, 2) -> (M,) each
    return (scene, row, col), (batch.scene, batch.centre[:, 0], batch.centre[:, 1])


def key_places(batch: Batch) -> tuple[Places, Places]:
    """Return ``places`` for the keys: the same tokens, but the windows of the second view."""
    row, col = batch.second_centre.T  # (B, 2) -> (B,) each
    return places(batch)[0], (batch.scene, row, col)


def on_device(place: Places, device: torch.device) -> Places:
    """Copy places to a device in one transfer."""
    scene, row, col = to_device(torch.stack([x.float() for x in place]), device)  # exact: < 2^24
    return scene.long(), row, col
