"""Laws of the sphere."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geo_mvmf import sphere

LONGITUDES = st.floats(-540.0, 540.0)
LATITUDES = st.floats(-90.0, 90.0)


@given(LONGITUDES, LATITUDES)
def test_directions_are_unit_vectors_and_come_back(longitude, latitude):
    direction = sphere.to_directions(longitude, latitude)
    assert abs(np.linalg.norm(direction) - 1.0) < 4e-16
    back_longitude, back_latitude = sphere.to_longitude_latitude(direction)
    assert -180.0 <= back_longitude < 180.0
    assert abs(back_latitude - latitude) < 1e-7
    assert sphere.great_circle_distance_km(longitude, latitude, back_longitude, back_latitude) < 1e-6


def test_longitude_180_is_written_as_minus_180():
    longitude, _ = sphere.to_longitude_latitude([[-1.0, 0.0, 0.0], [-1.0, -0.0, 0.0]])
    assert longitude.tolist() == [-180.0, -180.0]


def test_half_a_turn_differs_and_a_full_turn_does_not():
    """PRIOR_ART row 5: the authors' code doubled the longitude."""
    longitude, latitude = np.linspace(-180, 179, 57), np.linspace(-80, 80, 57)
    here = sphere.to_directions(longitude, latitude)
    assert sphere.angle(here, sphere.to_directions(longitude + 180.0, latitude)).min() > 0.3
    assert sphere.angle(here, sphere.to_directions(longitude + 360.0, latitude)).max() < 1e-14

    def doubled(lon, lat):  # the broken twin
        return sphere.to_directions(2.0 * np.asarray(lon), lat)

    assert sphere.angle(doubled(longitude, latitude), doubled(longitude + 180.0, latitude)).max() < 1e-14


@given(LONGITUDES, LATITUDES, LONGITUDES, LATITUDES)
def test_distance_is_symmetric_and_agrees_with_the_angle(lon1, lat1, lon2, lat2):
    there = sphere.great_circle_distance_km(lon1, lat1, lon2, lat2)
    assert there == pytest.approx(float(sphere.great_circle_distance_km(lon2, lat2, lon1, lat1)), abs=1e-8)
    arc = sphere.angle(sphere.to_directions(lon1, lat1), sphere.to_directions(lon2, lat2))
    assert abs(there - arc * sphere.EARTH_RADIUS_KM) < 1e-8
    assert 0.0 <= there <= math.pi * sphere.EARTH_RADIUS_KM


@pytest.mark.parametrize("metres", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("latitude", [0.0, 52.0, -89.9])
def test_tiny_distances_keep_their_digits(metres, latitude):
    step = math.degrees(metres / 1000.0 / sphere.EARTH_RADIUS_KM)
    near = float(sphere.great_circle_distance_km(13.0, latitude, 13.0, latitude + step))
    assert near == pytest.approx(metres / 1000.0, rel=1e-4, abs=2e-12)
    antipode = float(sphere.great_circle_distance_km(13.0, latitude, -167.0, -latitude - step))
    assert math.pi * sphere.EARTH_RADIUS_KM - antipode == pytest.approx(metres / 1000.0, rel=1e-4, abs=2e-11)
    # the broken twin: the law of cosines sees nothing below a few metres
    phi1, phi2 = math.radians(latitude), math.radians(latitude + step)
    cosine = min(1.0, math.sin(phi1) * math.sin(phi2) + math.cos(phi1) * math.cos(phi2))
    if metres < 0.1:
        assert abs(math.acos(cosine) * sphere.EARTH_RADIUS_KM * 1000.0 - metres) > 0.5 * metres


def test_distance_of_known_places_and_of_nan():
    quarter = math.pi / 2 * sphere.EARTH_RADIUS_KM
    assert float(sphere.great_circle_distance_km(0, 90, 123, 0)) == pytest.approx(quarter, rel=1e-15)
    assert float(sphere.great_circle_distance_km(179.5, 0, -179.5, 0)) == pytest.approx(quarter / 90, rel=1e-13)
    assert math.isnan(sphere.great_circle_distance_km(math.nan, 0, 0, 0))
    assert sphere.great_circle_distance_km(np.zeros((3, 1)), 0.0, np.ones(4), 1.0).shape == (3, 4)


@settings(max_examples=200)
@given(LONGITUDES, LATITUDES, st.floats(0.0, 360.0), st.floats(0.0, 20000.0))
def test_destination_lies_at_the_distance(longitude, latitude, bearing, distance_km):
    there = sphere.destination(longitude, latitude, bearing, distance_km)
    assert abs(sphere.great_circle_distance_km(longitude, latitude, *there) - distance_km) < 1e-6


def test_destination_north_and_east():
    degree = math.radians(1.0) * sphere.EARTH_RADIUS_KM
    assert np.allclose(sphere.destination(10.0, 50.0, 0.0, degree), (10.0, 51.0))
    assert np.allclose(sphere.destination(10.0, 0.0, 90.0, degree), (11.0, 0.0))
    assert np.allclose(sphere.destination(0.0, 90.0, 180.0, degree), (0.0, 89.0))  # from the pole along longitude 0


def test_areas():
    band = sphere.rectangle_area_km2(-180, np.arange(-90, 90), 180, np.arange(-89, 91))
    assert float(band.sum()) == pytest.approx(sphere.EARTH_AREA_KM2, rel=1e-13)
    cap_at_pole = sphere.rectangle_area_km2(-180, 89, 180, 90)
    share = math.sin(math.radians(0.5)) ** 2
    assert float(cap_at_pole) == pytest.approx(sphere.EARTH_AREA_KM2 * share, rel=1e-11)


def test_random_directions_are_uniform():
    directions = sphere.random_directions(200_000, np.random.default_rng(3))
    assert np.abs(np.linalg.norm(directions, axis=1) - 1.0).max() < 1e-15
    assert np.abs(directions.mean(axis=0)).max() < 5 / math.sqrt(3 * 200_000)
    assert np.allclose(directions.T @ directions / 200_000, np.eye(3) / 3, atol=5e-3)


def test_tangents():
    generator = np.random.default_rng(0)
    special = [[0, 0, 1], [0, 0, -1], [1, 0, 0], [0, -1, 0], [0, 0, -1 + 1e-16]]
    directions = np.concatenate([sphere.random_directions(1000, generator), np.array(special, dtype=float)])
    basis = sphere.tangent_basis(directions)
    assert np.allclose(basis @ directions[..., None], 0.0, atol=1e-15)
    assert np.allclose(basis @ np.swapaxes(basis, -1, -2), np.eye(2), atol=1e-14)
    assert np.allclose(np.cross(basis[:, 0], basis[:, 1]), directions, atol=1e-14)


def test_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        sphere.to_longitude_latitude([1.0, 2.0])
