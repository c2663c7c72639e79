"""What the pixels of a data folder look like: figures per band, and what looks wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.dtypes import in_dtype_range
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from .form import tags_of
from .layout import Layout, Sensor
from .pairing import SPOKEN
from .rasters import Pixels, data_bands, opened, scaling_of, strips
from .scene import Scene, read_sensor
from .stack import Raster

SAMPLE = 2**18  # pixels of a folder from which medians are computed; all of a smaller folder
THINNED_PX = 1024  # margins are searched on every n-th row and column, about this many
LEAST_MARGIN, LEAST_OUTLINE = 0.01, 0.05  # shares of a scene and of its outline
TYPICAL_FILLS = (0, 255, 65535, -9999, -32768)  # as are the lowest and highest value of a band
BULK = 0.1  # share of values
NEUTRAL = ("", "0", "0.0", "1", "1.0")  # scales and offsets
# Tags of Sentinel-2 and of NetCDF's conventions that GDAL does not apply.
UNITS = re.compile("(BOA|RADIO)_ADD_OFFSET|^(add_offset|scale_factor)$")
FEW = 100  # values, from which nothing is concluded
SAID_SCENES = 3  # listed in a message


class Look:
    """The values of one sensor in one scene: collected strip by strip, in physical units.

    ``low``, ``high`` and ``zeros`` (pixels stored as 0) are ``(C,)``, ``sample`` is ``(C, n)``; all
    of pixels that are valid in every sensor. ``margins`` tells which values, as stored, fill
    margins: value -> band -> share of the scene.
    """

    def __init__(self, path: Raster, sensor: Sensor, step: int) -> None:
        """Read the header of a file, of which every ``step``-th row and column is kept."""
        with opened(path) as source:
            bands = data_bands(source, len(sensor.bands))[: len(sensor.bands)]
            scale, offset = scaling_of(source, bands)
            self.tags = tags_of(scale, offset)
            self.integers = np.dtype(source.dtypes[0]).kind in "iu" and (scale == 1).all()
            self.remarks = [*_remarks(source, sensor, self.tags)]
            self.nodata = source.nodata if sensor.nodata is None else sensor.nodata
        self.sensor, self.step = sensor, step
        self.low = np.full(len(bands), math.inf)
        self.high = np.full(len(bands), -math.inf)
        self.zeros: NDArray[Any] = np.zeros(len(bands), int)
        self.margins: dict[str, dict[str, float]] = {}
        self.sample, self.count = np.empty((len(bands), 0)), 0
        self._samples: list[NDArray[Any]] = []
        self._thinned: list[tuple[NDArray[Any], NDArray[np.bool_]]] = []

    def add(
        self,
        window: Window,
        pixels: Pixels,
        own: NDArray[np.bool_],
        valid: NDArray[np.bool_],
        chosen: Any,
    ) -> None:
        """Add a strip: ``own`` is valid in this sensor, and ``chosen`` are drawn from ``valid``."""
        thin = np.s_[..., -window.row_off % self.step :: self.step, :: self.step]
        self._thinned.append((pixels.stored[thin], own[thin]))
        if not valid.any():
            return
        whole, physical = bool(valid.all()), pixels.physical()
        drawn = []
        for band, (stored, values) in enumerate(zip(pixels.stored, physical, strict=True)):
            known = values.reshape(-1) if whole else values[valid]
            self.low[band] = min(self.low[band], known.min())
            self.high[band] = max(self.high[band], known.max())
            self.zeros[band] += np.count_nonzero((stored == 0) & valid)
            drawn.append(known[chosen])
        self.count += known.size
        self._samples.append(np.array(drawn))

    def close(self) -> None:
        """Join the strips."""
        if self._samples:
            self.sample = np.concatenate(self._samples, axis=1)
        stored, own = (np.concatenate(parts, axis=-2) for parts in zip(*self._thinned, strict=True))
        for name, band in zip(self.sensor.bands, stored, strict=True):
            for value, share in margins(band, own):
                self.margins.setdefault(value, {})[name] = share
        self._samples, self._thinned = [], []


def _remarks(source: Any, sensor: Sensor, tags: str) -> Iterator[str]:
    """Say what a header means for the values; of their units, only ``tags`` are applied."""
    dtype = source.dtypes[0]
    if sensor.nodata is not None and not in_dtype_range(sensor.nodata, dtype):
        yield f"are {dtype}, which cannot hold nodata {sensor.nodata:g} of the layout; correct it"
    named = (item for band in (0, *source.indexes) for item in source.tags(band).items())
    units = [f"{k} {v}" for k, v in named if UNITS.search(k) and v.strip() not in NEUTRAL]
    if units and not tags:
        yield (
            f"name {units[0]} in their metadata, but have no scale or offset tag, so it is not "
            "applied (if it should be: gdal_translate -a_offset VALUE -a_scale VALUE IN OUT.tif)"
        )
    colors = source.colormap(1) if source.colorinterp[0] is ColorInterp.palette else {}
    if any(rgba[:3] != (value,) * 3 for value, rgba in colors.items()):  # no scale of greys
        yield (
            "have a colour table; if their values are numbers of its colours and no measures, use "
            "the file from which they were made"
        )


def look_at(scene: Scene, share: float) -> tuple[int, dict[str, Look]]:
    """Read a scene once, strip by strip; return its valid pixels, and a look per sensor.

    ``share`` of the pixels are drawn as a sample.

    Raises:
        DataError: a file cannot be read.
    """
    grid, rng, valid_px = scene.profile(), np.random.default_rng(0), 0
    files = {role: (path, sensor) for role, (path, sensor) in scene.files().items() if sensor}
    step = math.ceil(max(grid.height, grid.width) / THINNED_PX)
    looks = {role: Look(*file, step) for role, file in files.items()}
    for window in strips(grid):
        read = {role: read_sensor(*file, window) for role, file in files.items()}
        valid = np.logical_and.reduce([own for _, own in read.values()])
        count = int(valid.sum())
        chosen: Any = np.s_[:]
        if share < 1 and count:
            chosen = rng.integers(count, size=math.ceil(count * share))
        for role, (pixels, own) in read.items():
            looks[role].add(window, pixels, own, valid, chosen)
        valid_px += count
    for seen in looks.values():
        seen.close()
    return valid_px, looks


def margins(band: NDArray[Any], known: NDArray[np.bool_]) -> Iterator[tuple[str, float]]:
    """Find constant values that fill connected parts of a band ``(h, w)`` along its outline.

    Looked for are the lowest and the highest value, typical fill values, and what fills a side;
    ``known`` pixels are those that nothing declares to be nodata.

    Yields:
        The value, and its share of the pixels in such parts, from ``LEAST_MARGIN`` to below 1.
    """
    sides = [band[0], band[-1], band[:, 0], band[:, -1]]
    edge = [known[0], known[-1], known[:, 0], known[:, -1]]
    values, counts = np.unique(
        np.concatenate([s[k] for s, k in zip(sides, edge, strict=True)]), return_counts=True
    )
    fills = {*TYPICAL_FILLS, *(side[0] for side in sides if (side == side[0]).all())}
    for value in values[counts >= LEAST_OUTLINE * 2 * sum(band.shape)]:
        if value in fills or value in (band[known].min(), band[known].max()):
            from scipy import ndimage  # slow to import, and few scenes need it

            parts, _ = ndimage.label((band == value) & known)
            sizes = np.bincount(parts.ravel()) / band.size
            touching = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
            large = sizes[touching[touching > 0]]
            share = float(large[large > LEAST_MARGIN / 4].sum())  # the others are specks
            if LEAST_MARGIN <= share < 1:  # else the band is constant
                yield str(value).removesuffix(".0"), share


def table(looks: Sequence[dict[str, Look]]) -> list[str]:
    """Format lowest, median and highest value and the share of zeros of each band as lines."""
    lines = []
    for role in looks[0] if looks else ():
        seen = [each[role] for each in looks]
        median = np.median(np.concatenate([s.sample for s in seen], axis=1), axis=1)
        zeros = sum((s.zeros for s in seen), np.zeros(len(median))) / sum(s.count for s in seen)
        for band, name in enumerate(seen[0].sensor.bands):
            row = min(s.low[band] for s in seen), median[band], max(s.high[band] for s in seen)
            figures = " ".join(f"{value:>10.4g}" for value in row)
            lines.append(f"  {SPOKEN[role] + ' ' + name:<24} {figures} {zeros[band]:>9.1%}")
    titles = " ".join(f"{title:>10}" for title in ("min", "median", "max"))
    return [f"{'Values of valid pixels':<26} {titles} {'zeros':>9}", *lines] if lines else []


def warnings_of(layout: Layout, looks: dict[str, dict[str, Look]]) -> list[str]:
    """Say what looks wrong in the scenes (name -> role -> look), one sentence each."""
    found: list[str] = []
    for role in dict.fromkeys(role for each in looks.values() for role in each):
        seen = {name: each[role] for name, each in looks.items()}
        found += _margin_warnings(layout, role, seen)
        texts = dict.fromkeys(text for s in seen.values() for text in _misfits(s))
        for text in texts:
            odd = {name: s for name, s in seen.items() if text in _misfits(s)}
            low = min(s.low.min() for s in odd.values())
            high = max(s.high.max() for s in odd.values())
            found.append(
                f"{SPOKEN[role]} values ({low:.4g} to {high:.4g}) {text}: {listed(odd, seen)}."
            )
        for text in dict.fromkeys(text for s in seen.values() for text in s.remarks):
            odd = {name: s for name, s in seen.items() if text in s.remarks}
            found.append(f"{SPOKEN[role]} files {text}: {listed(odd, seen)}.")
    return found


def listed(some: Collection[str], all_: Collection[Any]) -> str:
    """Say how many of all scenes these are, and name the first."""
    names = [*list(some)[:SAID_SCENES], *(["..."] if len(some) > SAID_SCENES else [])]
    return f"{len(some)} of {len(all_)} scenes ({', '.join(names)})"


def _margin_warnings(layout: Layout, role: str, seen: dict[str, Look]) -> Iterator[str]:
    """Say which undeclared values fill margins, how much, and what to add to the layout."""
    values = list(dict.fromkeys(value for s in seen.values() for value in s.margins))
    for value in values:
        odd = {name: s.margins[value] for name, s in seen.items() if value in s.margins}
        bands = dict.fromkeys(band for shares in odd.values() for band in shares)
        most = max(max(shares.values()) for shares in odd.values())
        advice = f"add 'nodata: {value}' under '{role}' in {layout.source}"
        if any(s.nodata not in (None, float(value)) for s in seen.values()):
            advice = "set these pixels to the nodata value, or hide them by a mask in the file"
        yield (
            f"{SPOKEN[role]} value {value} fills connected margins of {listed(odd, seen)}, up to "
            f"{most:.1%} of a scene (bands {', '.join(bands)}), and counts as data; if it means no "
            f"data, {advice}."
        )


def _misfits(look: Look) -> Iterator[str]:
    """Say how values do not fit the scaling of their sensor."""
    scaling, low, high = look.sensor.scaling, look.low.min(), look.high.max()
    below = (look.sample < 0).mean(axis=1).max()
    for band, *ends, values in zip(
        look.sensor.bands, look.low, look.high, look.sample, strict=True
    ):
        if ends[0] == ends[1]:
            yield f"are all the same in band {band}"
        elif ends in ([0, 255], [0, 65535]) and values.size > FEW and np.isin(values, ends).all():
            yield f"are only 0 and {ends[1]:g} in band {band}, as transparency is: do not name it"
    if scaling == "reflectance" and below > BULK:
        yield "are often below 0, as reflectance is not"
    if scaling == "db":
        if low < -60 or high > 30:
            yield "are not all within -60..30, as dB are; look for fill values"
        if look.low.max() >= 0:
            yield "are nowhere below 0 in some band, as linear power (scaling 'intensity') is"
    elif scaling == "intensity":
        if high > 1000:
            yield "are too high for linear power, where 1000 is 30 dB; they may be amplitudes"
        if below > BULK:
            yield "are often below 0, as dB (scaling 'db') are, but not linear power"
    elif scaling == "reflectance" and not look.integers:
        if high > 2:
            yield "are too high for reflectance in floats or scaled, which hardly exceeds 1"
        if high < 0.01:
            yield "are too low for reflectance in floats or scaled; was it scaled twice?"
    elif scaling == "reflectance":
        if high > 20_000:
            yield "are too high for reflectance x 10 000; look for fill values or another scale"
        if high <= 255:
            yield "look like 8-bit values, not like reflectance x 10 000"
    elif scaling == "elevation" and (low < -500 or high > 9000):
        yield "are not all within -500..9000 m; look for fill values"
