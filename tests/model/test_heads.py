"""Heads: the mixture layer and its baselines (acceptance row 10, and the paper's section 2.3)."""

import numpy as np
import pytest
import torch

from geo_mvmf import s2, sphere
from geo_mvmf.maps import estimates
from geo_mvmf.model.heads import CrossEntropyHead, MvmfHead, NearestNeighbours, head_from_state, head_state
from geo_mvmf.model.partition import partition_sphere


def mvmf(c=20, d=6, **options):
    mu = sphere.random_directions(c, np.random.default_rng(0))
    return MvmfHead(d, mu, np.full(c, 12.0), **options)


def test_casting_the_module_does_not_change_the_loss():
    head = mvmf(train_mean_directions=True)
    y = head.mean_directions.detach()[:4]
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    before = float(head.loss(x, y))
    cast = head.half()
    assert cast.mean_directions.dtype == torch.float64
    assert cast.log_concentrations.dtype == torch.float64
    assert isinstance(dict(cast.named_parameters())["mean_directions"], torch.nn.Parameter)
    assert float(cast.float().loss(x, y)) == pytest.approx(before, abs=1e-3)


def test_a_step_stays_on_the_sphere():
    head = mvmf(train_mean_directions=True, train_log_concentrations=True)
    y = torch.from_numpy(sphere.random_directions(8, np.random.default_rng(1)))
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-3)
    head.loss(torch.zeros(8, 6), y).backward()
    head.project_gradient()
    tangent = (head.mean_directions.grad * head.mean_directions).sum(1)
    assert tangent.abs().max() <= 1e-9 * head.mean_directions.grad.norm()
    optimiser.step()
    head.project()
    torch.testing.assert_close(head.mean_directions.norm(dim=1), torch.ones(20, dtype=torch.float64))


def test_row_10_equal_weights_give_a_mean_direction_and_not_a_sum():
    head = mvmf()
    with torch.no_grad():
        head.weight.zero_()
    longitude, latitude = estimates.estimate(head.mixture(torch.zeros(1, 6)))[0]
    gap = np.abs(head.mean_directions.numpy() - sphere.to_directions(longitude, latitude)).max(axis=1)
    assert gap.min() < 1e-12


def test_planet_learns_the_containing_cell():
    generator = np.random.default_rng(2)
    y = sphere.random_directions(300, generator)
    cells = partition_sphere(*sphere.to_longitude_latitude(y), 30)
    head = CrossEntropyHead(3, cells.cell_ids, prior_counts=cells.counts)
    x, target = torch.from_numpy(y).float(), torch.from_numpy(y)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.3)
    before = float(head.loss(x, target))
    for _ in range(150):
        optimiser.zero_grad()
        head.loss(x, target).backward()
        optimiser.step()
    assert float(head.loss(x, target)) < 0.5 * before
    mixture = head.mixture(x[:5])
    inside = np.exp(mixture.log_density(y[:5]))
    expected = head.log_mixing_weights(x[:5]).exp().detach().double().numpy()
    index = cells.assign(*sphere.to_longitude_latitude(y[:5]))
    area = s2.area_sr(cells.cell_ids)
    np.testing.assert_allclose(np.diag(inside), expected[np.arange(5), index] / area[index], rtol=1e-6)


def test_section_2_3_components_at_the_data_are_nearest_neighbours():
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(50, 8)).astype(np.float32), sphere.random_directions(50, generator)
    head = MvmfHead(8, y, np.full(50, 10.0))
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(x))
        head.bias.copy_(torch.from_numpy(-(x**2).sum(1) / 2))
    queries = generator.normal(size=(40, 8)).astype(np.float32)
    places = estimates.estimate(head.mixture(torch.from_numpy(queries)))
    neighbours = NearestNeighbours(x, *sphere.to_longitude_latitude(y))
    np.testing.assert_allclose(places, neighbours.predict(queries), atol=1e-9)


def test_several_neighbours_are_averaged_on_the_sphere():
    neighbours = NearestNeighbours([[0.0], [1.0], [50.0]], [179.0, -179.0, 0.0], [0.0, 0.0, 0.0], k=2)
    longitude, _ = neighbours.predict([[0.5]])[0]
    assert abs(longitude) == pytest.approx(180.0)


@pytest.mark.parametrize("kind", ["mvmf", "cross_entropy"])
def test_state_round_trip_is_exact(kind):
    head = mvmf(floor=1e-6, train_log_concentrations=True) if kind == "mvmf" else CrossEntropyHead(6, s2.face_cells())
    again = head_from_state(*head_state(head))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(head.log_mixing_weights(x), again.log_mixing_weights(x))
    assert head_state(head)[1] == head_state(again)[1]


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="head kind 'forest'"):
        head_from_state({"weight": torch.zeros(1, 1)}, {"kind": "forest"})
