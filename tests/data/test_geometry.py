"""Pixel sizes and distances on the ground, against the radii of the ellipsoid WGS 84."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from umsf_lib.data.rasters import Grid, apart_km, pixel_size_m

A, E2 = 6378137.0, 6.694379990141317e-3  # semi-major axis in m, squared eccentricity


def radii_m(latitude: float) -> tuple[float, float]:
    """Radius of the meridian, and of the parallel."""
    sin, cos = math.sin(math.radians(latitude)), math.cos(math.radians(latitude))
    w = math.sqrt(1 - E2 * sin**2)
    return A * (1 - E2) / w**3, A * cos / w


E = math.sqrt(E2)
SIN_70 = math.sin(math.radians(70))
# Scale at the pole of the polar stereographic projection that is true at 70 degrees (Snyder 1987,
# equations 14-15, 15-9 and 21-34, solved for k0).
POLE = (
    radii_m(70)[1]
    / A
    * math.sqrt((1 + E) ** (1 + E) * (1 - E) ** (1 - E))
    / (2 * math.tan(math.radians(10)) / ((1 - E * SIN_70) / (1 + E * SIN_70)) ** (E / 2))
)


def grid_at(code: str, longitude: float, latitude: float, step: float, size: int = 48) -> Grid:
    """A north-up grid with its centre at a place; ``step`` in units of the CRS."""
    (x,), (y,) = transform("EPSG:4326", code, [longitude], [latitude])
    corner = Affine(step, 0, x - step * size / 2, 0, -step, y + step * size / 2)
    return Grid(size, size, CRS.from_string(code), corner)


@pytest.mark.parametrize("latitude", [0.0, 30.5, -47.0, 71.0, 89.9])
@pytest.mark.parametrize("longitude", [0.0, 111.0, 180.0, 299.5, -179.99999])
def test_degrees_follow_the_radii_of_the_ellipsoid(longitude: float, latitude: float) -> None:
    step = 1e-4
    corner = Affine(step, 0, longitude - 20 * step, 0, -step / 2, latitude + 12 * step)
    height, width = pixel_size_m(Grid(48, 40, CRS.from_epsg(4326), corner))
    meridian, parallel = radii_m(latitude)
    assert height == pytest.approx(math.radians(step / 2) * meridian, rel=1e-6)
    assert width == pytest.approx(math.radians(step) * parallel, rel=1e-6)


@pytest.mark.parametrize("latitude", [0.0, -17.0, 60.0])
@pytest.mark.parametrize("longitude", [12.0, 180.0])
def test_web_mercator_pixels_shrink_with_latitude(longitude: float, latitude: float) -> None:
    """EPSG:3857 takes degrees for those of a sphere of radius A: 1 m is 1 / (A cos) radians."""
    meridian, parallel = radii_m(latitude)
    size = pixel_size_m(grid_at("EPSG:3857", longitude, latitude, 10.0))
    cos = math.cos(math.radians(latitude))
    assert size == pytest.approx((10 * cos / A * meridian, 10 / A * parallel), rel=1e-5)


@pytest.mark.parametrize(
    ("code", "longitude", "latitude", "metres"),
    [
        ("EPSG:32650", 117.0, 30.0, 10 / 0.9996),  # the central meridian of a UTM zone
        ("EPSG:32760", 177.0, -17.0, 10 / 0.9996),
        ("EPSG:3031", 0.0, -71.0, 10.0),  # polar stereographic, at its latitude of true scale
        ("EPSG:3413", -45.0, 70.0, 10.0),
        ("EPSG:3413", 100.0, 90.0, 10 / POLE),
        ("EPSG:2154", 3.0, 44.0, 10.0),  # Lambert conformal, on a standard parallel
        ("EPSG:2263", -74.0, 41.033, 10 * 1200 / 3937),  # US survey feet, standard parallel 41°02'
        ("EPSG:32650+5773", 117.0, 30.0, 10 / 0.9996),  # with heights above a geoid
    ],
)
def test_projected_pixels_in_any_unit(code, longitude, latitude, metres) -> None:
    found = pixel_size_m(grid_at(code, longitude, latitude, 10.0))
    assert found == pytest.approx((metres, metres), rel=1e-4)


def test_a_turned_grid_keeps_its_pixel_size() -> None:
    straight = grid_at("EPSG:32650", 117.0, 30.0, 10.0)
    x, y = straight.transform.c + 240, straight.transform.f - 240  # its centre
    a, d, b, e = 10 * math.cos(0.5), 10 * math.sin(0.5), 30 * math.sin(0.5), -30 * math.cos(0.5)
    turned = Affine(a, b, x - 24 * (a + b), d, e, y - 24 * (d + e))
    found = pixel_size_m(Grid(48, 48, straight.crs, turned))
    assert found == pytest.approx((30 / 0.9996, 10 / 0.9996), rel=1e-6)


@pytest.mark.parametrize("code", ["IAU_2015:30100", 'LOCAL_CS["here",UNIT["metre",1]]', None])
def test_what_has_no_place_on_earth_has_no_pixel_size(code: str | None) -> None:
    grid = Grid(48, 48, CRS.from_string(code) if code else None, Affine(1, 0, 5, 0, -1, 5))
    assert pixel_size_m(grid) is None and apart_km(grid, grid) is None
    far = Grid(48, 48, CRS.from_epsg(4326), Affine(math.nan, 0, 0, 0, 1, 0))
    assert pixel_size_m(far) is None


@pytest.mark.parametrize(
    ("place", "km"),
    [
        ((0.0, 1.0), math.radians(1) * radii_m(0.5)[0] / 1000),
        ((1.0, 0.0), math.radians(1) * A / 1000),
        ((-180.0, 0.0), math.pi * A / 1000),  # the other side of the world
    ],
)
def test_distances_between_centres(place: tuple[float, float], km: float) -> None:
    here, there = grid_at("EPSG:4326", 0, 0, 0.001), grid_at("EPSG:4326", *place, 0.01)
    assert apart_km(here, there) == pytest.approx(km, rel=1e-3)
    assert np.isclose(apart_km(there, here), apart_km(here, there))
