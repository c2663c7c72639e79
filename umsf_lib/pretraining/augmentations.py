"""Two augmented views of each window, made on the device.

Within a view both sensors share the geometry, so their tokens stay registered. The two views of a
window differ in crop, flip and quarter turn. A view stores its geometry, so the tokens of one view
can be found in the other. These pairs are the dense positives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import ViewConfig
from ..models.speckle import Source, draw, draw_speckle, draw_uniform, kernel_3x3, noise_source
from ..run import to_device


@dataclass(frozen=True)
class View:
    """One view of a batch of windows.

    Attributes:
        images: sensor -> ``(B, C, h, w)`` float32; with SAR ``sar_log_std``, as in
            ``PixelStore.windows``.
        theta: ``(B, 2, 3)`` affine matrices from view to window coordinates, both (x, y) in
            [-1, 1]; on the CPU, so that the overlap of two views is known without asking a GPU.
        valid: ``(B, h, w)`` bool on the CPU, the tokens that lie on valid ground; None if all do.
    """

    images: dict[str, Tensor]
    theta: Tensor
    valid: Tensor | None = None

    def pool(self, maps: Tensor) -> Tensor:
        """Average token maps ``(B, C, h, w)`` over valid ground to ``(B, C)``; 0 without any."""
        if self.valid is None:
            return maps.mean(dim=(2, 3))
        share = self.valid.flatten(1).float()  # (B, h w)
        share /= share.sum(dim=1, keepdim=True).clamp_min(1)
        share = to_device(share, maps.device).to(maps.dtype)
        return (maps.flatten(2) @ share[:, :, None])[:, :, 0]  # (B, C, h w) x (B, h w, 1) -> (B, C)


def draw_geometry(batch: int, scale_min: float, generator: torch.Generator) -> Tensor:
    """Draw crop, flip and quarter turn per window as affine matrices ``(B, 2, 3)`` on the CPU.

    A point (x, y) of the view, in [-1, 1], lies in the window at ``scale * turn * flip * (x, y) +
    shift``:

    - flip is 1 or -1 and multiplies x, so it mirrors left and right;
    - turn rotates by 0, 90, 180 or 270 degrees;
    - scale in [scale_min, 1] makes the view a crop of that share of the window's side;
    - shift moves the middle of the crop. The turned crop still is a square with the half side
      ``scale``, so a shift of at most ``1 - scale`` in x and y keeps it inside the window.
    """
    cpu = torch.device("cpu")
    scale = scale_min + (1 - scale_min) * draw_uniform((batch, 1), generator, cpu)  # (B, 1)
    shift = (1 - scale) * (2 * draw_uniform((batch, 2), generator, cpu) - 1)  # (B, 2)
    turn = (draw_uniform((batch,), generator, cpu) * 4).long()  # (B,) quarter turns
    flip = 1 - 2 * (draw_uniform((batch,), generator, cpu) * 2).long().float()  # (B,)
    cos = torch.tensor([1.0, 0.0, -1.0, 0.0])[turn]
    sin = torch.tensor([0.0, 1.0, 0.0, -1.0])[turn]
    # [cos -sin] [flip 0]   [flip cos  -sin]
    # [sin  cos] [  0  1] = [flip sin   cos]
    matrix = torch.stack([flip * cos, -sin, flip * sin, cos], 1).view(batch, 2, 2)  # (B, 4) ->
    return torch.cat([scale[:, :, None] * matrix, shift[:, :, None]], dim=2)  # (B, 2, 2 + 1)


def resample(images: Tensor, theta: Tensor) -> Tensor:
    """Resample windows ``(B, C, h, w)`` bilinearly by ``theta (B, 2, 3)`` to the same shape."""
    (height, width), device = images.shape[2:], images.device
    # Same as F.affine_grid, but without its matrix product. Autocast would run that in bfloat16 and
    # TF32 would round it, which moves pixels by up to a third of a pixel in windows of 256 px.
    y, x = ((2 * torch.arange(n, device=device) + 1) / n - 1 for n in (height, width))
    per_x, per_y, shift = to_device(theta, device)[:, None, None].unbind(4)  # (B, 1, 1, 2) each
    grid = per_x * x[:, None] + per_y * y[:, None, None] + shift  # (B, h, w, 2)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def blur(images: Tensor) -> Tensor:
    """Blur ``(B, C, h, w)`` with a binomial 3 x 3 kernel and mirrored borders."""
    channels = images.shape[1]
    kernel = (kernel_3x3(0.5, images.device) / 4).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), kernel, groups=channels)


def photometric_optical(x: Tensor, config: ViewConfig, source: Source) -> Tensor:
    """Apply gain and offset per band, common haze and occasional blur to bands ``(B, C, h, w)``."""
    batch, bands = x.shape[:2]
    gain = 1 + config.gain * draw((batch, bands, 1, 1), source, x.device)
    offset = config.offset * draw((batch, bands, 1, 1), source, x.device)
    haze = config.offset * draw((batch, 1, 1, 1), source, x.device)
    blurred = draw_uniform((batch, 1, 1, 1), source, x.device) < config.blur
    x = gain * x + offset + haze
    return torch.where(blurred, blur(x), x)


def photometric_sar(x: Tensor, log_std: Tensor, config: ViewConfig, source: Source) -> Tensor:
    """Apply more speckle and a gain, both additive in the log, to ln intensity ``(B, Cs, h, w)``.

    ``log_std (B, Cs, 1, 1)`` is the std by which it was standardised.
    """
    x = x + config.sar_gain * draw((x.shape[0], x.shape[1], 1, 1), source, x.device)
    if config.speckle_looks == 0:
        return x
    noise = draw_speckle(tuple(x.shape), config.speckle_looks, source, x.device)  # type: ignore[arg-type]
    return x + noise.clamp_min(1e-3).log() / log_std


def make_view(windows: dict[str, Tensor], config: ViewConfig, generator: torch.Generator) -> View:
    """Draw one view of a batch: shared geometry, then photometric steps per sensor.

    The windows are as ``PixelStore.windows`` returns them, the generator is on the CPU.
    """
    first = windows["optical"] if "optical" in windows else windows["sar"]
    theta = draw_geometry(len(first), config.scale_min, generator)
    return show_view(windows, theta, config, noise_source(generator, first.device))


def show_view(
    windows: dict[str, Tensor], theta: Tensor, config: ViewConfig, source: Source
) -> View:
    """Make the view of a batch with given geometry ``theta``; see ``make_view``."""
    images: dict[str, Tensor] = {
        role: resample(windows[role], theta) for role in ("optical", "sar") if role in windows
    }
    # Autocast would compute speckle and blur in bfloat16, with only three digits.
    with torch.autocast(next(iter(images.values())).device.type, enabled=False):
        if "optical" in images:
            images["optical"] = photometric_optical(images["optical"], config, source)
            if config.band_drop:
                images["optical"] = drop_bands(images["optical"], config.band_drop, source)
        if "sar" in images:
            log_std = windows["sar_log_std"]
            images["sar"] = photometric_sar(images["sar"], log_std, config, source)
        if config.sensor_drop and len(images) == 2:
            images = drop_sensor(images, config.sensor_drop, source)
    if "sar" in images:
        images["sar_log_std"] = windows["sar_log_std"]
    return View(images, theta)


def drop_sensor(images: dict[str, Tensor], probability: float, source: Source) -> dict[str, Tensor]:
    """Set one of the two sensors to 0 in some windows, so that either alone must suffice there.

    Both are equally likely to be dropped. 0 is the mean of standardised values. Source: Wang et al.
    2022 (DINO-MM), with probability 0.5.
    """
    first = images["optical"]
    u = draw_uniform((len(first), 2), source, first.device)
    lost = {"optical": u[:, 0] < probability * (u[:, 1] < 0.5)}
    lost["sar"] = (u[:, 0] < probability) & ~lost["optical"]
    return {role: x.masked_fill(lost[role][:, None, None, None], 0) for role, x in images.items()}


def drop_bands(optical: Tensor, probability: float, source: Source) -> Tensor:
    """Set single bands of windows ``(B, Co, h, w)`` to 0, the mean of standardised values.

    The network then learns to do without a band that other imagery may lack.
    """
    lost = draw_uniform((*optical.shape[:2], 1, 1), source, optical.device) < probability
    return optical.masked_fill(lost, 0)


def draw_matches(
    first: View,
    second: View,
    count: int,
    generator: torch.Generator,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw ground positions that both views see.

    Positions are drawn in the first view and mapped to the second. Those outside the second view
    are marked, not moved. All of this runs on the CPU, where the geometry is.

    Args:
        first: view of B windows.
        second: view of the same windows, or of others.
        count: n, positions per window.
        generator: CPU generator of the draws.
        shift: ``(B, 2)`` offset (x, y) from the first window to the second, in half window sides;
            None where they are the same.

    Returns:
        The positions in the first and in the second view, each ``(B, n, 2)`` as (x, y) where -1
        and 1 are its borders; and ``(B, n)`` bool: seen by both.
    """
    shape = (len(first.theta), count, 2)
    points_a = 2 * draw_uniform(shape, generator, first.theta.device) - 1
    ground = apply_affine(first.theta, points_a)
    points_b = invert_affine(second.theta, ground if shift is None else ground - shift[:, None])
    return points_a, points_b, (points_b.abs() < 1).all(dim=2)


def apply_affine(theta: Tensor, points: Tensor) -> Tensor:
    """Map points ``(B, n, 2)`` by affine matrices ``(B, 2, 3)``."""
    # (B, n, 2) x (B, 2, 2) + (B, 1, 2) -> (B, n, 2)
    return points @ theta[:, :, :2].transpose(1, 2) + theta[:, None, :, 2]


def invert_affine(theta: Tensor, points: Tensor) -> Tensor:
    """Map points ``(B, n, 2)`` by the inverse of ``apply_affine``."""
    back = torch.linalg.inv(theta[:, :, :2])
    return (points - theta[:, None, :, 2]) @ back.transpose(1, 2)  # (B, n, 2) x (B, 2, 2)


def sample_tokens(maps: Tensor, points: Tensor) -> Tensor:
    """Sample token maps ``(B, C, H, W)`` bilinearly at points ``(B, n, 2)``: ``(B, n, C)``.

    The result is that of ``F.grid_sample`` with repeated borders. But ``F.grid_sample`` reads all
    channels of a point in one thread, which takes milliseconds on a GPU, and adds up its gradients
    in varying order.
    """
    return read_tokens(maps, *tokens_around(points, maps.shape[2], maps.shape[3]))


def tokens_around(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Find the four tokens around each point ``(B, n, 2)``, on the device of the points.

    Returns:
        Index of each token in the flattened maps of ``height`` x ``width``, ``(4, B, n)`` int64,
        and its bilinear weight ``(4, B, n)``; both are arguments of ``read_tokens``.
    """
    first = height * width * torch.arange(len(points), device=points.device)[:, None]  # (B, 1)
    x, y = (
        ((points[:, :, i] + 1) * n - 1).div(2).clamp(0, n - 1)
        for i, n in enumerate((width, height))
    )
    left, top = x.long(), y.long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    to_right, down = x - left, y - top
    rows = (top, 1 - down), (bottom, down)
    columns = (left, 1 - to_right), (right, to_right)
    corners = [(first + r * width + c, tall * wide) for r, tall in rows for c, wide in columns]
    index, weight = zip(*corners, strict=True)
    return torch.stack(index), torch.stack(weight)


def read_tokens(maps: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Sum the tokens ``index (4, ...)`` of maps ``(B, C, H, W)`` by ``weight``: ``(..., C)``."""
    rows = maps.permute(0, 2, 3, 1).flatten(0, 2)  # (B H W, C); channels last: no copy
    index, weight = to_device(index, maps.device), to_device(weight, maps.device)
    return (rows[index] * weight[..., None]).sum(dim=0)  # (4, ..., C) -> (..., C)
