"""Overlap with the training: all, half or none of it is told apart from a few hashes."""

import numpy as np
import pytest

from geo_mvmf.model import overlap


@pytest.fixture(scope="module")
def places():
    generator = np.random.default_rng(0)
    return generator.uniform(-180, 180, 5000), generator.uniform(-85, 85, 5000)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_is_estimated_from_a_sketch(places, share):
    longitude, latitude = places
    known = overlap.sketch(longitude[:4000], latitude[:4000])
    assert len(known) == 256 * 8
    inside = int(1000 * share)
    chosen = np.r_[np.arange(inside), 4000 + np.arange(1000 - inside)]
    found = overlap.measure(known, longitude[chosen], latitude[chosen])
    assert 30 < found.tested < 110  # 256 of 4000 hashes: about 64 of 1000
    assert abs(found.share - share) < 4 * 0.5 / np.sqrt(found.tested) * (0 < share < 1) + 1e-9


def test_places_are_the_same_whatever_their_decimals_and_order(places):
    longitude, latitude = (values[:3000].round(5) for values in places)
    known = overlap.sketch(longitude, latitude)
    assert overlap.sketch(longitude[::-1] + 1e-7, latitude[::-1]) == known


def test_few_training_places_are_all_in_the_sketch(places):
    longitude, latitude = (values[:10] for values in places)
    found = overlap.measure(overlap.sketch(longitude, latitude), *(values[:20] for values in places))
    assert found == (0.5, 20)


def test_what_is_no_sketch_is_an_error(places):
    with pytest.raises(ValueError, match="invalid literal"):
        overlap.measure("no hashes", *places)
