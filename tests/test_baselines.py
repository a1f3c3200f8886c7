"""The density of the training images: it integrates to one, and is known where its cells are."""

import numpy as np

from geo_mvmf import baselines, s2, sphere


def test_the_training_density_integrates_to_one():
    cells = np.concatenate([s2.children(s2.face_cells()[:1]).ravel(), s2.face_cells()[1:]])
    counts = np.array([50, 0, 3, 9, 0, 1, 7, 0, 30])
    centres = sphere.to_longitude_latitude(s2.centre(cells))
    density = np.exp(-baselines.training_nll(cells, counts, *centres))
    assert np.isclose((density * s2.area_sr(cells)).sum(), 1.0)
    assert np.isclose(density[0] * s2.area_sr(cells[:1])[0], 51 / 109)


def test_what_is_not_known_is_nan():
    faces = np.sort(s2.face_cells())
    found = baselines.training_nll(faces[:3], np.ones(3, int), [0.0, np.nan, *np.linspace(-170, 170, 20)], np.zeros(22))
    assert np.isnan(found[1])
    assert 0 < np.isnan(found[2:]).sum() < 20
    overlapping = np.concatenate([faces, s2.children(faces[:1]).ravel()])
    for cells, counts in ((np.zeros(2, np.uint64), 1), (faces, 0), (overlapping, 1)):
        assert np.isnan(baselines.training_nll(cells, np.full(cells.size, counts), [0.0], [0.0])).all()
