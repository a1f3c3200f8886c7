"""Heads: the mixture layer and its baselines (acceptance row 10, and the paper's section 2.3)."""

import copy
import json
import math

import numpy as np
import pytest
import torch

from geo_mvmf import s2, sphere
from geo_mvmf.maps import estimates
from geo_mvmf.model.bundle_format import MAX_LOG_CONCENTRATION
from geo_mvmf.model.head_state import head_from_state, head_state
from geo_mvmf.model.heads import CrossEntropyHead, MvmfHead, NearestNeighbours
from geo_mvmf.model.loss import mvmf_loss
from geo_mvmf.model.partition import partition_sphere

F64 = torch.float64


def mvmf(c=20, d=6, log_kappa=12.0, **options):
    mu = sphere.random_directions(c, np.random.default_rng(0))
    return MvmfHead(d, mu, np.full(c, log_kappa), **options)


def planet(**options):
    cells = partition_sphere(*sphere.to_longitude_latitude(sphere.random_directions(300, np.random.default_rng(2))), 30)
    return CrossEntropyHead(6, cells.cell_ids, **options)


def features(n, d=6, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def targets(n, seed=1):
    return torch.from_numpy(sphere.random_directions(n, np.random.default_rng(seed)))


CASTS = [
    lambda head: head.half(),
    lambda head: head.bfloat16(),
    lambda head: head.to(torch.float16),
    lambda head: head.half().float(),
    lambda head: head.double().float(),
    lambda head: head.to("cpu", torch.float32),
    lambda head: head.type(torch.float16),
    lambda head: head.cpu().float(),
]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("cast", CASTS)
def test_casting_the_module_does_not_change_the_loss(cast, train):
    head = mvmf(train_mean_directions=train, train_log_concentrations=train, log_kappa=16.0)
    with torch.no_grad():
        head.weight.copy_((head.weight * 1024).round() / 1024)  # so that half precision holds the weights exactly
    y = head.mean_directions.detach()[:4] + 1e-4 * targets(4)
    y = y / y.norm(dim=1, keepdim=True)
    x = torch.eye(4, 6)
    before, coordinates = head.loss(x, y), head.mean_directions.detach().clone()
    head.loss(x, y).backward()
    head = cast(head)
    assert head.weight.dtype != F64
    for name in ("mean_directions", "log_concentrations"):
        assert getattr(head, name).dtype == F64
        assert (name in dict(head.named_parameters())) == train
        assert (name in dict(head.named_buffers())) != train
        assert getattr(head, name).grad is None or getattr(head, name).grad.dtype == F64
    assert torch.equal(head.mean_directions, coordinates)
    torch.testing.assert_close(head.loss(x, y), before, rtol=1e-6, atol=1e-6)
    # the broken twin: coordinates that follow the cast
    followed = mvmf_loss(x, head.weight, head.bias, coordinates.half(), head.log_concentrations, y)
    assert abs(float((followed - before).detach())) > 0.1


def test_a_cast_inside_a_larger_module_keeps_the_coordinates():
    network = torch.nn.Sequential(torch.nn.Linear(3, 6), mvmf(train_mean_directions=True)).half()
    assert network[1].mean_directions.dtype == network[1].log_concentrations.dtype == F64
    assert copy.deepcopy(network)[1].mean_directions.dtype == F64
    assert network[1].weight.dtype == torch.float16


def test_moving_to_another_device_moves_the_coordinates_and_keeps_their_type():
    head = mvmf(train_mean_directions=True).to("meta", torch.float16)
    for name, tensor in {**dict(head.named_parameters()), **dict(head.named_buffers())}.items():
        assert tensor.device.type == "meta"
        assert tensor.dtype == (torch.float16 if name in ("weight", "bias") else F64)


def test_a_step_stays_on_the_sphere():
    head = mvmf(train_mean_directions=True, train_log_concentrations=True)
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-3)
    for seed in range(3):
        optimiser.zero_grad()
        head.loss(torch.zeros(8, 6), targets(8, seed)).backward()
        head.project_gradient()
        across = (head.mean_directions.grad * head.mean_directions).sum(1)
        assert across.abs().max() <= 1e-9 * head.mean_directions.grad.norm()
        optimiser.step()
        head.project()
        torch.testing.assert_close(head.mean_directions.norm(dim=1), torch.ones(20, dtype=F64), rtol=0, atol=1e-15)
    assert head.mean_directions.is_leaf


def test_projection_of_frozen_mean_directions_does_nothing():
    head = mvmf()
    before = head.mean_directions.clone()
    head.project_gradient()
    head.project()
    torch.testing.assert_close(head.mean_directions, before, rtol=0, atol=0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_trained_concentrations_stay_where_there_are_mixtures(sign):
    """Beyond +-60 a mixture is refused, and so the whole model: steps go no farther."""
    head = mvmf(train_log_concentrations=True)
    head.log_concentrations.data += sign * 80.0
    with pytest.raises(ValueError, match=r"not in -60\.\.60"):
        head.mixture(torch.zeros(1, 6))
    frozen = head.mean_directions.clone()
    head.project()
    assert (head.log_concentrations == sign * MAX_LOG_CONCENTRATION).all()
    assert torch.equal(head.mean_directions, frozen)
    assert np.isfinite(head.mixture(torch.zeros(1, 6)).log_density([[0.0, 0.0, 1.0]])).all()


@pytest.mark.hard
def test_trained_mean_directions_and_concentrations_find_the_data():
    """Fitting all of it: two towns, two components begun 1,500 km away."""
    towns = sphere.to_directions([2.35, 13.4], [48.86, 52.52])
    generator = np.random.default_rng(0)
    y = np.repeat(towns, 200, axis=0) + 1e-3 * generator.normal(size=(400, 3))
    y = torch.from_numpy(y / np.linalg.norm(y, axis=1, keepdims=True))
    x = torch.zeros(400, 2)
    x[:200, 0] = x[200:, 1] = 1.0
    start = sphere.to_directions([-10.0, 30.0], [45.0, 60.0])
    head = MvmfHead(2, start, [4.0, 4.0], train_mean_directions=True, train_log_concentrations=True)
    named = dict(head.named_parameters())
    rates = {"weight": 0.05, "mean_directions": 0.05, "log_concentrations": 0.3}
    optimiser = torch.optim.Adam(
        [{"params": [named[name]], "lr": rate} for name, rate in rates.items()], betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.98)
    for _ in range(400):
        optimiser.zero_grad()
        head.loss(x, y).backward()
        head.project_gradient()
        optimiser.step()
        schedule.step()
        head.project()
    mu = head.mean_directions.detach().numpy()
    gap_km = sphere.angle(mu[:, None], towns).min(axis=0) * sphere.EARTH_RADIUS_KM
    assert gap_km.max() < 3.0  # 6.4 km of scatter over the root of 200
    np.testing.assert_allclose(head.log_concentrations.detach(), math.log(1e6), atol=0.3)


def test_the_loss_is_minus_the_log_density_of_the_mixture():
    head, x, y = mvmf(log_kappa=7.0), features(5), targets(5)
    expected = -np.diag(head.mixture(x).log_density(y))
    np.testing.assert_allclose(head.loss(x, y, reduction="none").detach(), expected, rtol=1e-6, atol=1e-5)


def test_row_10_equal_weights_give_a_mean_direction_and_not_a_sum():
    """PRIOR_ART row 10: the authors' code adds the mean directions that tie."""
    head = mvmf()
    with torch.no_grad():
        head.weight.zero_()
    mixture = head.mixture(torch.zeros(1, 6))
    assert np.ptp(mixture.log_mixing_weights) == 0.0
    mu = head.mean_directions.numpy()
    chosen = mixture.mean_directions[mixture.log_mixing_weights.argmax(axis=1)]
    assert np.abs(mu - chosen).max(axis=1).min() < 1e-15
    longitude, latitude = estimates.estimate(mixture)[0]
    assert sphere.angle(mu, sphere.to_directions(longitude, latitude)).min() < 1e-12
    tied = mu[mixture.log_mixing_weights[0] == mixture.log_mixing_weights.max()].sum(axis=0)  # the broken twin
    assert sphere.angle(mu, tied / np.linalg.norm(tied)).min() > 1e-2


def test_the_first_weights():
    head = mvmf(c=3000, d=10, seed=4)
    weight = head.weight.detach()
    assert float(weight.mean()) == pytest.approx(0.0, abs=3e-4)
    assert float(weight.std()) == pytest.approx(0.01, rel=0.02)
    assert head.bias.abs().max() == 0.0
    assert torch.equal(weight, mvmf(c=3000, d=10, seed=4).weight)
    assert not torch.equal(weight, mvmf(c=3000, d=10, seed=5).weight)
    state = torch.random.get_rng_state()
    mvmf()
    assert torch.equal(state, torch.random.get_rng_state())  # the global generator is nobody's


def test_prior_counts_are_the_first_prediction():
    counts = np.arange(20)
    head = mvmf(prior_counts=counts)
    share = head.log_mixing_weights(torch.zeros(1, 6)).exp().detach()[0]
    np.testing.assert_allclose(share, (counts + 1) / (counts + 1).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 2)), np.zeros(2)), r"shapes \(2, 2\), \(2,\); expected \(C, 3\), \(C,\)"),
        ((np.ones((2, 3)), np.zeros(3)), r"shapes \(2, 3\), \(3,\)"),
        ((np.array([[1.0, 0, 0], [0, 0, 0]]), np.zeros(2)), r"component 1 has mean direction \[0\.0, 0\.0, 0\.0\]"),
        ((np.eye(3), np.array([1.0, np.nan, 2.0])), "component 1 has .* log concentration nan"),
        ((np.eye(3), np.array([1.0, 2.0, 60.5])), r"component 2 has .* log concentration 60\.5; .* in \+-60"),
    ],
)
def test_components_that_cannot_be_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MvmfHead(2, *arguments)


@pytest.mark.parametrize("counts", [np.ones(3), np.full(20, -1.0), np.full(20, np.nan), np.full(20, np.inf)])
def test_wrong_prior_counts_are_refused(counts):
    with pytest.raises(ValueError, match="prior_counts have shape"):
        mvmf(prior_counts=counts)


def test_a_floor_that_cannot_be_is_refused_before_any_loss():
    with pytest.raises(ValueError, match=r"floor -1\.0 must be a positive density"):
        mvmf(floor=-1.0)


def test_log_mixing_weights_are_never_rounded_by_autocast():
    for head in (mvmf(), planet()):
        with torch.no_grad():
            head.weight.mul_(1000.0)
        exact = head.log_mixing_weights(features(4))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(head.log_mixing_weights(features(4)), exact)
        torch.testing.assert_close(exact.exp().sum(1), torch.ones(4))
        assert head.log_mixing_weights(features(4).half()).dtype == torch.float32


def test_planet_is_torchs_cross_entropy_on_the_containing_cell():
    head, x, y = planet(), features(9), targets(9)
    classes = torch.from_numpy(s2.contains(head.cell_ids, s2.leaf_ids(y.numpy())[:, None]).argmax(axis=1))
    np.testing.assert_array_equal(head.classes(y.numpy()), classes)
    logits = torch.nn.functional.linear(x, head.weight, head.bias)
    weight = torch.arange(9.0)
    each = torch.nn.functional.cross_entropy(logits, classes, reduction="none")
    torch.testing.assert_close(head.loss(x, y, reduction="none"), each)
    torch.testing.assert_close(head.loss(x, y, weight), (each * weight).sum() / weight.sum())
    # the density: the loss plus the log of the cell's area is the negative log density of the cell mixture
    area = torch.from_numpy(s2.area_sr(head.cell_ids))[classes]
    expected = -np.diag(head.mixture(x).log_density(y))
    np.testing.assert_allclose((each + area.log()).detach(), expected, rtol=1e-5)


def test_planet_learns_the_containing_cell():
    y = targets(300, seed=2)
    head = CrossEntropyHead(3, planet().cell_ids)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.3)
    before = float(head.loss(y.float(), y).detach())
    for _ in range(100):
        optimiser.zero_grad()
        head.loss(y.float(), y).backward()
        optimiser.step()
    assert float(head.loss(y.float(), y).detach()) < 0.5 * before


def test_the_mixture_of_planet_has_probability_on_its_cells():
    head, x = planet(), features(3)
    mixture = head.mixture(x)
    assert len(mixture) == 3
    for image in range(3):
        cells, probabilities = mixture.of(image)
        np.testing.assert_array_equal(cells, head.cell_ids)
        np.testing.assert_allclose(probabilities, head.log_mixing_weights(x).exp().detach()[image], rtol=1e-5)


def test_a_target_outside_of_all_cells_is_named():
    head = CrossEntropyHead(2, s2.face_cells()[:2])
    with pytest.raises(ValueError, match=r"direction 1 is \[0\.0, 0\.0, 1\.0\], in none of the 2 cells"):
        head.loss(torch.zeros(2, 2), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (s2.face_cells()[::-1], "overlap or are not in ascending order"),
        (np.sort(np.append(s2.face_cells(), s2.children(s2.face_cells()[0])[0])), "cells .*, .* overlap"),
        (np.array([3], dtype=np.uint64) << np.uint64(62), "must be one row of S2 cells"),
        (np.empty(0, dtype=np.uint64), "must be one row of S2 cells"),
    ],
)
def test_cells_that_are_no_partition_are_refused(cells, message):
    with pytest.raises(ValueError, match=message):
        CrossEntropyHead(2, cells)


@pytest.mark.parametrize("make", [mvmf, planet, lambda: planet(label_smoothing_km=75.0)])
def test_targets_and_weights_that_would_be_plausible_nonsense_are_named(make):
    head, x, y = make(), features(3), targets(3)
    with pytest.raises(ValueError, match="target_directions: row 0 has length 2, which is not in"):
        head.loss(x, 2.0 * y)
    with pytest.raises(ValueError, match="sample_weight: row 1 has value -1, which is not 0 or more"):
        head.loss(x, y, torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(
        TypeError, match=r"target_directions is of type ndarray, expected a torch.Tensor of shape \(3, 3\)"
    ):
        head.loss(x, y.numpy())


def test_a_head_that_is_never_projected_says_so():
    head = mvmf(train_mean_directions=True)
    with torch.no_grad():
        head.mean_directions *= 1.2
    with pytest.raises(ValueError, match=r"mean_directions: row 0 has length 1\.2, .* after every step"):
        head.loss(features(3), targets(3))
    head.project()
    assert torch.isfinite(head.loss(features(3), targets(3)))


def test_section_2_3_components_at_the_data_are_nearest_neighbours():
    """c = n, mu_i = y_i, w_i = x_i, b_i = -|x_i|^2 / 2: the component estimate is the nearest neighbour's place."""
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(200, 8)).astype(np.float32), sphere.random_directions(200, generator)
    head = MvmfHead(8, y, np.full(200, 10.0))
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(x))
        head.bias.copy_(torch.from_numpy(-(x**2).sum(1) / 2))
    queries = generator.normal(size=(100, 8)).astype(np.float32)
    places = estimates.estimate(head.mixture(torch.from_numpy(queries)))
    neighbours = NearestNeighbours(x, *sphere.to_longitude_latitude(y))
    np.testing.assert_allclose(places, neighbours.predict(queries), atol=1e-9)
    with torch.no_grad():
        head.bias.zero_()  # the broken twin: the largest inner product alone, as the paper words it
    product = estimates.estimate(head.mixture(torch.from_numpy(queries)))
    assert np.abs(product - neighbours.predict(queries)).max(axis=1).astype(bool).mean() > 0.3


@pytest.mark.parametrize("cast", [lambda head: head, lambda head: head.half()])
@pytest.mark.parametrize(
    "make",
    [
        lambda: mvmf(floor=1e-6, train_log_concentrations=True),
        lambda: mvmf(train_mean_directions=True, seed=3),
        planet,
    ],
)
def test_state_round_trip_is_exact(make, cast):
    head = cast(make())
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(1.0 + 1e-7)  # mean directions a little off length 1, as an optimiser leaves them
    tensors, config = head_state(head)
    again = head_from_state(tensors, json.loads(json.dumps(config)))
    assert type(again) is type(head)
    again_tensors, again_config = head_state(again)
    assert again_config == config
    assert again_tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == again_tensors[name].dtype
        assert torch.equal(tensor, again_tensors[name])
        assert tensor.data_ptr() != again_tensors[name].data_ptr()
    assert dict(again.named_parameters()).keys() == dict(head.named_parameters()).keys()
    x, y = features(3), targets(3)
    assert torch.equal(head.log_mixing_weights(x), again.log_mixing_weights(x))
    assert torch.equal(head.loss(x, y), again.loss(x, y))


def test_states_that_are_no_head_are_refused():
    tensors, config = head_state(mvmf())
    with pytest.raises(ValueError, match="head kind 'forest' is not one of mvmf, cross_entropy"):
        head_from_state(tensors, {"kind": "forest"})
    with pytest.raises(ValueError, match=r"a head of kind mvmf has tensors .* not \['bias'"):
        head_from_state({name: t for name, t in tensors.items() if name != "weight"}, config)
    with pytest.raises(ValueError, match="a head of kind mvmf has tensors"):
        head_from_state(tensors | {"more": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match=r"weight has shape \(19, 6\), expected \(20, 6\)"):
        head_from_state(tensors | {"weight": tensors["weight"][1:]}, config)
    with pytest.raises(ValueError, match=r"bias has shape \(19,\), expected \(20,\)"):
        head_from_state(tensors | {"bias": tensors["bias"][1:]}, config)
