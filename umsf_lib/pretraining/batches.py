"""A batch of pretraining: two views of each window, and where on the ground they lie.

Geometry is drawn and matched on the CPU: what two views share decides the shapes of what follows,
and a GPU that is asked for it keeps the host waiting. Pixels and their noise stay on the device.
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

    ``scene (B,)``, or the plane of scenes that lie side by side (``neighbours.ScenePlane``), where
    all rows and columns are counted, in px; ``centre (B, 2)`` of the windows that the first view
    shows and ``second_centre (B, 2)`` of those of the second, the same or neighbours; ``points_a``
    and ``points_b (B, n, 2)`` in coordinates of the first and the second view; ``ground (B, n, 2)``
    row, col; ``visible (B, n)`` in both views; all on the CPU. Where several processes share the
    batch, these tell of all its windows, and the views are those of ``rows``.
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
        """The windows of this process only."""
        names = ("scene", "centre", "second_centre", "points_a", "points_b", "ground", "visible")
        return replace(self, **{name: getattr(self, name)[self.rows] for name in names})


def as_arrays(batch: Batch) -> tuple[list[dict[str, np.ndarray]], list[list[np.ndarray]]]:
    """A batch for looking at: ``figures.views_figure``'s views, and points that both views see."""
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
        windows: what the first and the second views show, of this process's rows, each with the
            std of its ln intensity; see ``make_view``.
        plane: ``(B,)`` of the whole batch; ``scene`` of ``Batch``.
        corners: ``(B, 2)`` each, row, col of the first and the second windows, in px.
        views: window size and strengths.
        tokens: positions to draw per window.
        generator: of all draws, on the CPU; on a GPU it seeds those that are made there.
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
    """(scene, row, col) of the tokens seen by both views, and of the first windows; on the CPU."""
    scene = batch.scene[:, None].expand_as(batch.visible)[batch.visible]
    row, col = batch.ground[batch.visible].T
    return (scene, row, col), (batch.scene, batch.centre[:, 0], batch.centre[:, 1])


def key_places(batch: Batch) -> tuple[Places, Places]:
    """As ``places``, with the windows that the second view shows; tokens are of the same ground."""
    row, col = batch.second_centre.T
    return places(batch)[0], (batch.scene, row, col)


def on_device(place: Places, device: torch.device) -> Places:
    """The same places where they are needed, by one copy."""
    scene, row, col = to_device(torch.stack([x.float() for x in place]), device)  # exact: < 2^24
    return scene.long(), row, col
