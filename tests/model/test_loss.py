"""The MvMF loss against float64, autograd, finite differences and closed forms (acceptance rows 2-6, 8, 9, 11, 12)."""

import math
import os
import pathlib
import re
import subprocess
import sys

import mpmath
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from geo_mvmf import sphere, vmf
from geo_mvmf.mixture import VmfMixture
from geo_mvmf.model import idle_memory, streaming
from geo_mvmf.model.loss import cross_entropy_loss, log_density, log_normaliser, mvmf_loss

F64 = torch.float64


def directions(n, seed):
    return torch.from_numpy(sphere.random_directions(n, np.random.default_rng(seed)))


def problem(n=7, d=5, c=40, log_kappa=(0.0, 20.0), dtype=F64, seed=0, near=True):
    generator = torch.Generator().manual_seed(seed)
    mu = directions(c, seed + 1)
    y = mu[:n] + 1e-3 * torch.randn(n, 3, generator=generator, dtype=F64) if near else directions(n, seed + 2)
    y = y / y.norm(dim=1, keepdim=True)
    parts = {
        "features": torch.randn(n, d, generator=generator, dtype=F64).to(dtype),
        "weight": torch.randn(c, d, generator=generator, dtype=F64).to(dtype),
        "bias": torch.randn(c, generator=generator, dtype=F64).to(dtype),
        "mean_directions": mu,
        "log_concentrations": torch.linspace(*log_kappa, c, dtype=F64),
    }
    return {name: part.requires_grad_() for name, part in parts.items()}, y


def whole(parts, y, log_f=log_density):
    """The loss in float64 from whole arrays, gradients by autograd."""
    p = {name: part.double() for name, part in parts.items()}
    z = p["features"] @ p["weight"].T + p["bias"]
    joint = torch.log_softmax(z, dim=1) + log_f(y, p["mean_directions"], p["log_concentrations"])
    return -torch.logsumexp(joint, dim=1)


def gradients(value, parts):
    return dict(zip(parts, torch.autograd.grad(value, list(parts.values())), strict=True))


def one_component(mu, log_kappa, y, **options):
    """The loss of a mixture of one component: minus its log density."""
    n = len(y)
    return mvmf_loss(torch.zeros(n, 1), torch.zeros(1, 1), torch.zeros(1), mu, log_kappa, y, **options)


@pytest.fixture
def narrow_chunks(monkeypatch):
    """Chunks of 16 components, so that small problems have several."""
    monkeypatch.setattr(streaming, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(streaming, "_CHUNK_LIMITS", (16, 16))


def test_equals_the_mixture_density_of_numpy(narrow_chunks):
    parts, y = problem(log_kappa=(-3.0, 18.0))
    z = (parts["features"] @ parts["weight"].T + parts["bias"]).detach()
    mixture = VmfMixture(
        parts["mean_directions"].detach(), parts["log_concentrations"].detach(), torch.log_softmax(z, 1)
    )
    expected = -np.diag(mixture.log_density(y))
    np.testing.assert_allclose(mvmf_loss(**parts, target_directions=y, reduction="none").detach(), expected, rtol=1e-12)


def test_torch_and_numpy_forms_of_the_log_density_are_the_same():
    y, mu, log_kappa = directions(20, 0), directions(30, 1), torch.linspace(-12.0, 25.0, 30, dtype=F64)
    expected = vmf.log_density(y.numpy()[:, None], mu.numpy(), log_kappa.numpy())
    np.testing.assert_allclose(log_density(y, mu, log_kappa), expected, rtol=1e-14)


@pytest.mark.parametrize("chunk", [3, 16, 4096])
@pytest.mark.parametrize("budget", [0, 1500, None])
def test_gradients_equal_autograds_in_float64(chunk, budget, monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(streaming, "_CHUNK_LIMITS", (chunk, chunk))
    parts, y = problem()
    weight = torch.rand(7, dtype=F64, generator=torch.Generator().manual_seed(1))
    loss = mvmf_loss(**parts, target_directions=y, sample_weight=weight, logit_budget_bytes=budget)
    expected = (whole(parts, y) * weight).sum() / weight.sum()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    found, exact = gradients(loss, parts), gradients(expected, parts)
    for name in parts:
        error = float((found[name] - exact[name]).norm() / exact[name].norm())
        assert error <= 1e-9, (name, error)


@pytest.mark.parametrize(
    ("reduction", "floor"),
    [
        ("mean", None),
        ("sum", 1e-3),
        ("none", None),
        *(pytest.param(*case, marks=pytest.mark.hard) for case in (("mean", 1e-3), ("sum", None), ("none", 1e-3))),
    ],
)
def test_gradients_pass_finite_differences(reduction, floor, narrow_chunks):
    parts, y = problem(n=3, d=2, c=20, log_kappa=(-8.0, 4.0))
    weight = torch.tensor([1.0, 0.0, 2.5], dtype=F64)
    assert torch.autograd.gradcheck(
        lambda *tensors: mvmf_loss(*tensors, y, reduction=reduction, floor=floor, sample_weight=weight),
        tuple(parts.values()),
    )


def test_float32_gradients_are_those_of_float64():
    parts, y = problem(n=64, d=16, c=3000, log_kappa=(10.0, 10.0), dtype=torch.float32)
    found = gradients(mvmf_loss(**parts, target_directions=y), parts)
    exact = gradients(whole(parts, y).mean(), parts)
    for name in parts:
        error = float((found[name] - exact[name]).norm() / exact[name].norm())
        assert error <= 3e-6, (name, error)


@pytest.mark.parametrize("kept", ["features", "weight", "bias", "mean_directions", "log_concentrations"])
def test_a_gradient_alone_is_the_same_as_among_others(kept):
    parts, y = problem()
    loss = mvmf_loss(**parts, target_directions=y)
    (expected,) = torch.autograd.grad(loss, parts[kept])
    frozen = {name: part if name == kept else part.detach() for name, part in parts.items()}
    (alone,) = torch.autograd.grad(mvmf_loss(**frozen, target_directions=y), parts[kept])
    assert torch.equal(alone, expected)


def test_kept_and_recomputed_logits_give_the_same_bits(narrow_chunks):
    parts, y = problem(n=5, c=90, dtype=torch.float32)
    each = []
    for budget in (0, 5 * 16 * 4, 5 * 50 * 4, 1 << 30):
        loss = mvmf_loss(**parts, target_directions=y, logit_budget_bytes=budget)
        each.append([loss.detach(), *gradients(loss, parts).values()])
    for other in each[1:]:
        assert all(torch.equal(a, b) for a, b in zip(each[0], other, strict=True))


@pytest.mark.parametrize("log_kappa", [9.0, 14.0])
def test_exponentials_rounded_to_half_the_bytes_move_gradients_by_3e_3_and_the_loss_not(log_kappa):
    parts, y = problem(n=64, d=16, c=3000, log_kappa=(log_kappa, log_kappa), dtype=torch.float32)
    exact, rounded = (mvmf_loss(**parts, target_directions=y, kept_type=kind) for kind in (None, "bfloat16"))
    assert torch.equal(rounded, exact)
    expected, found = gradients(exact, parts), gradients(rounded, parts)
    error = {name: float((found[name] - expected[name]).norm() / expected[name].norm()) for name in parts}
    assert 1e-5 < error["weight"] < 3e-3  # it is rounded, indeed
    assert max(error.values()) < 3e-3


def test_a_second_backward_pass_gives_the_same(narrow_chunks):
    """The kept exponentials are gone by then, to another batch: they are formed again."""
    parts, y = problem(n=5, c=300, dtype=torch.float32)
    loss = mvmf_loss(**parts, target_directions=y)
    first = torch.autograd.grad(loss, list(parts.values()), retain_graph=True)
    other = mvmf_loss(**{**parts, "features": parts["features"] + 1.0}, target_directions=y)
    again = torch.autograd.grad(loss, list(parts.values()))
    other.backward()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_logits_that_leap_by_more_than_float32_can_exponentiate(narrow_chunks):
    """A chunk whose logits stand e^300 above all before it: its shifts are found anew, and kept logits agree."""
    parts, y = problem(n=5, c=90, dtype=torch.float32, log_kappa=(14.0, 14.0))
    with torch.no_grad():
        parts["bias"][70] = 300.0
        parts["bias"][20] = -300.0
    each = []
    for budget in (0, None):
        loss = mvmf_loss(**parts, target_directions=y, logit_budget_bytes=budget)
        each.append([loss.detach(), *gradients(loss, parts).values()])
    assert all(torch.equal(a, b) for a, b in zip(*each, strict=True))
    expected = whole(parts, y).mean()
    assert float(each[0][0]) == pytest.approx(float(expected.detach()), rel=1e-6)
    for found, exact in zip(each[0][1:], gradients(expected, parts).values(), strict=True):
        assert float((found - exact).norm()) <= 2e-6 * max(float(exact.norm()), 1e-3)


@pytest.mark.parametrize("scale", [1.0, 1e-7])
def test_a_leap_that_float32_can_just_exponentiate_loses_no_gradient(scale):
    """96 nats above the chunk before: exp of it is finite, and its share of the row would underflow when scaled."""
    parts, y = problem(n=64, d=4, c=9000, dtype=torch.float32, log_kappa=(6.0, 6.0))
    with torch.no_grad():
        parts["features"].zero_()
        parts["bias"].zero_()[8300] = 96.0
    loss = mvmf_loss(**parts, target_directions=y)
    found = torch.autograd.grad(loss * scale, parts["bias"])[0]
    expected = torch.autograd.grad(whole(parts, y).mean() * scale, parts["bias"])[0]
    assert float(found[8300]) == pytest.approx(float(expected[8300]), rel=1e-5)


@pytest.mark.parametrize("log_kappa", [8.0, 20.0])
def test_components_that_are_ruled_out(log_kappa, narrow_chunks):
    """A bias of -inf: also of the nearest components, and of all in the first chunks."""
    parts, y = problem(n=4, c=1000, dtype=torch.float32, log_kappa=(log_kappa, log_kappa))
    with torch.no_grad():
        parts["bias"][:40] = -math.inf
    loss = mvmf_loss(**parts, target_directions=y, reduction="none")
    torch.testing.assert_close(loss.double(), whole(parts, y), rtol=1e-6, atol=1e-5)
    found = torch.autograd.grad(loss.sum(), parts["weight"])[0]
    exact = torch.autograd.grad(whole(parts, y).sum(), parts["weight"])[0]
    assert float((found - exact).norm() / exact.norm()) < 1e-5
    target = torch.tensor([990, 41, 500, 999])
    layer = [parts[name] for name in ("features", "weight", "bias")]
    expected = torch.nn.functional.cross_entropy(torch.nn.functional.linear(*layer), target)
    torch.testing.assert_close(cross_entropy_loss(*layer, target), expected)


def test_nothing_is_kept_where_nobody_goes_backward(monkeypatch):
    parts, y = problem(n=64, c=3000, dtype=torch.float32, log_kappa=(14.0, 14.0))
    made, plain = [], idle_memory.empty
    monkeypatch.setattr(idle_memory, "empty", lambda shape, *rest: made.append(math.prod(shape)) or plain(shape, *rest))
    with torch.no_grad():
        mvmf_loss(**parts, target_directions=y)
    assert made == [0]
    mvmf_loss(**parts, target_directions=y).backward()
    assert made[1:] == [64 * 3000, parts["weight"].numel()]


def test_a_step_takes_the_memory_of_the_one_before_but_not_what_is_held():
    parts, y = problem(n=32, d=64, c=40_000, dtype=torch.float32, log_kappa=(14.0, 14.0))
    assert parts["weight"].nbytes > idle_memory.LEAST_BYTES

    def step():
        parts["weight"].grad = None
        mvmf_loss(**parts, target_directions=y).backward()
        return parts["weight"].grad

    place = step().data_ptr()
    held = step()
    assert held.data_ptr() == place
    before = held.clone()
    assert step().data_ptr() != place
    assert torch.equal(held, before)


def test_row_2_kappa_to_zero_is_uniform():
    """PRIOR_ART row 2: -log 4 pi at log kappa -12, and a gradient that is not NaN."""
    log_kappa = torch.full((3,), -12.0, dtype=F64, requires_grad=True)
    y = directions(4, 1)
    np.testing.assert_allclose(log_density(y, directions(3, 2), log_kappa).detach(), -math.log(4 * math.pi), atol=2e-5)
    parts, y = problem(log_kappa=(-40.0, -12.0), near=False)
    loss = mvmf_loss(**parts, target_directions=y, reduction="none")
    np.testing.assert_allclose(loss.detach(), math.log(4 * math.pi), atol=2e-5)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(loss.sum(), parts).values())


def trained_log_concentration(start, y, mean, loss):
    log_kappa = torch.tensor([start], dtype=F64, requires_grad=True)
    optimiser = torch.optim.Rprop([log_kappa], lr=0.5, step_sizes=(1e-9, 2.0))
    for _ in range(80):
        optimiser.zero_grad()
        loss(mean, log_kappa, y).backward()
        optimiser.step()
    return float(log_kappa.detach())


@pytest.mark.parametrize("start", [-2.0, 4.0, 12.0])
@pytest.mark.parametrize("truth", [3.0, 9.0])
def test_row_3_concentration_trains_to_one_over_mean_1_minus_cos(truth, start):
    """PRIOR_ART row 3: one component fitted to samples from several starts."""
    mu = np.tile([[0.0, 0.6, 0.8]], (200, 1))
    y = torch.from_numpy(vmf.sample(mu, np.full(200, truth), np.random.default_rng(3)))
    mean = y.mean(0, keepdim=True) / y.mean(0).norm()
    optimum = -math.log(float((0.5 * (y - mean).square().sum(1)).mean()))  # for a narrow component
    assert trained_log_concentration(start, y, mean, one_component) == pytest.approx(optimum, abs=1e-6)

    def authors(mean, log_kappa, y):  # the broken twin: their normaliser `fvm2` lacks log kappa
        kappa = log_kappa.exp()
        normaliser = torch.where(kappa > 4.0, 2.0 - kappa, -(kappa**2) / 8.0)
        return -(normaliser + kappa * (y @ mean[0])).mean()

    assert trained_log_concentration(start, y, mean, authors) < math.log(4.0) + 0.1 < optimum


def test_row_4_derivative_by_concentration_is_continuous():
    """PRIOR_ART row 4: finite differences for log kappa -8..20, and across the change of form at kappa = 1e-3."""
    y, mu = torch.tensor([[0.0, 0.6, 0.8]], dtype=F64), torch.tensor([[0.0, 0.0, 1.0]], dtype=F64)
    h = 1e-5
    for log_kappa in [*np.linspace(-8.0, 20.0, 113), math.log(1e-3) - h / 2, math.log(1e-3) + h / 2]:
        value = torch.tensor([log_kappa], dtype=F64, requires_grad=True)
        one_component(mu, value, y).backward()
        high, low = (-float(vmf.log_density(y[0], mu[0], log_kappa + step)) for step in (h, -h))
        assert float(value.grad) == pytest.approx((high - low) / (2 * h), rel=1e-6, abs=1e-9)


def test_row_5_longitude_180_apart_differs_and_360_does_not():
    """PRIOR_ART row 5."""
    parts, _ = problem(near=False)
    values = [
        float(
            mvmf_loss(**parts, target_directions=torch.from_numpy(sphere.to_directions([lon] * 7, [48.0] * 7))).detach()
        )
        for lon in (2.0, 182.0, 362.0)
    ]
    assert abs(values[0] - values[1]) > 1e-3
    assert values[0] == pytest.approx(values[2], rel=1e-9)


def test_row_6_rotation_invariance():
    """PRIOR_ART row 6; and the gradient turns with the sphere."""
    parts, y = problem(log_kappa=(0.0, 12.0))
    turn = torch.from_numpy(Rotation.from_quat(np.random.default_rng(5).standard_normal(4)).as_matrix())
    turned = {**parts, "mean_directions": (parts["mean_directions"] @ turn.T).detach().requires_grad_()}
    before, after = mvmf_loss(**parts, target_directions=y), mvmf_loss(**turned, target_directions=y @ turn.T)
    assert float(before.detach()) == pytest.approx(float(after.detach()), rel=1e-9)
    expected = gradients(before, parts)["mean_directions"] @ turn.T
    torch.testing.assert_close(gradients(after, turned)["mean_directions"], expected, rtol=1e-6, atol=1e-6)


def far_problem(dtype):
    """Two components at almost one place, 20,000 km from the target."""
    parts, _ = problem(n=1, c=2, dtype=dtype, log_kappa=(20.0, 20.0))
    mu = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1e-3, 1.0]], dtype=F64)
    parts["mean_directions"] = (mu / mu.norm(dim=1, keepdim=True)).requires_grad_()
    return parts, torch.tensor([[0.0, 0.0, -1.0]], dtype=F64)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_row_8_finite_20000_km_from_every_component_at_log_kappa_20(dtype):
    """PRIOR_ART row 8: finite loss and gradient, and the right one."""
    parts, y = far_problem(dtype)
    loss = mvmf_loss(**parts, target_directions=y)
    found, exact = gradients(loss, parts), gradients(whole(parts, y).sum(), parts)
    assert float(loss.detach()) == pytest.approx(float(whole(parts, y).detach()), rel=1e-6)
    for name in parts:
        torch.testing.assert_close(found[name].double(), exact[name].double(), rtol=1e-5, atol=1e-9)
    assert found["weight"].abs().sum() > 0  # the pull of far targets is not lost

    density = (
        torch.softmax(torch.zeros(1, 2), 1) * log_density(y, parts["mean_directions"], torch.full((2,), 20.0)).exp()
    )
    plain, floored = -density.sum().log(), -(density.sum() + 1e-9).log()  # the broken twins, without logsumexp
    assert torch.isinf(plain)
    assert torch.autograd.grad(floored, parts["mean_directions"])[0].abs().max() == 0.0


def test_row_8_the_nearest_of_far_components_stays_the_nearest_in_float32():
    parts, y = far_problem(torch.float32)
    z = (parts["features"] @ parts["weight"].T + parts["bias"]).detach()
    pull = torch.tensor([0.0, 1.0])  # the second one is 480 nats nearer
    found = gradients(mvmf_loss(**parts, target_directions=y), parts)["bias"]
    torch.testing.assert_close(found, torch.softmax(z, 1)[0] - pull)
    # the broken twin: the sum of both in float32, which has steps of 64 nats out there
    close = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1e-4, 1.0]], dtype=F64)
    log_f = log_density(y, close / close.norm(dim=1, keepdim=True), torch.full((2,), 20.0, dtype=F64))
    assert float(log_f[0, 1] - log_f[0, 0]) > 2.0
    assert torch.softmax((z + log_f).float(), 1)[0, 0] > 0.1
    parts["mean_directions"] = close / close.norm(dim=1, keepdim=True)
    exact = torch.softmax(z.double() + log_f, 1)[0].float()
    found = gradients(mvmf_loss(**parts, target_directions=y), {"bias": parts["bias"]})["bias"]
    torch.testing.assert_close(found, torch.softmax(z, 1)[0] - exact, rtol=1e-5, atol=1e-6)


def dot_product(y, mu, log_kappa):
    """The broken twin: kappa (mu.y - 1) in float32."""
    kappa = log_kappa.float().exp()
    return (log_normaliser(log_kappa.float()) - kappa + kappa * (y.float() @ mu.float().T)).double()


@pytest.mark.parametrize("log_kappa", [8.0, 16.0, 20.0])
def test_row_9_float32_errs_by_less_than_1e_3_nat_at_log_kappa_16(log_kappa):
    """PRIOR_ART row 9, for targets within some sigma of a component."""
    parts, _ = problem(n=50, c=400, dtype=torch.float32, log_kappa=(log_kappa, log_kappa))
    sigma = math.exp(-log_kappa / 2)
    y = parts["mean_directions"].detach()[:50] + 3 * sigma * directions(50, 9)
    y = y / y.norm(dim=1, keepdim=True)
    exact = whole(parts, y).detach()
    found = mvmf_loss(**parts, target_directions=y, reduction="none").detach()
    assert float((found.double() - exact).abs().max()) < 1e-4
    if log_kappa >= 16.0:
        assert float((whole(parts, y, dot_product).detach() - exact).abs().max()) > 0.2


def test_row_9_against_fifty_digits():
    """PRIOR_ART row 9: one target 5 km from a component, in 50 digits."""
    mu = torch.from_numpy(sphere.to_directions([2.35, 13.4], [48.86, 52.52]))
    y = torch.from_numpy(sphere.to_directions([2.4179], [48.86]))
    with mpmath.workdps(50):
        kappa, exact = mpmath.e**16, mpmath.mpf(0)
        for row in mu.tolist():
            chord = sum((mpmath.mpf(a) - mpmath.mpf(b)) ** 2 for a, b in zip(row, y[0].tolist(), strict=True))
            exact += mpmath.exp(-kappa * chord / 2) * kappa / (2 * mpmath.pi * (1 - mpmath.exp(-2 * kappa))) / 2
        exact = -mpmath.log(exact)
    log_kappa = torch.full((2,), 16.0, dtype=F64)
    found = mvmf_loss(torch.zeros(1, 1), torch.zeros(2, 1), torch.zeros(2), mu, log_kappa, y)
    assert float(found) == pytest.approx(float(exact), abs=2e-6)
    assert abs(float(-torch.logsumexp(dot_product(y, mu, log_kappa), 1) + math.log(2.0)) - float(exact)) > 1e-2


def test_row_11_large_concentration_is_cross_entropy_on_the_nearest():
    """PRIOR_ART row 11: at log kappa 20 the gradient by the logits is softmax - onehot(nearest)."""
    parts, y = problem(n=6, c=30, log_kappa=(20.0, 20.0), near=False)
    z = (parts["features"] @ parts["weight"].T + parts["bias"]).detach()
    nearest = torch.cdist(y, parts["mean_directions"].detach()).argmin(dim=1)
    expected = (torch.softmax(z, 1) - torch.nn.functional.one_hot(nearest, 30)).sum(0)
    found = gradients(mvmf_loss(**parts, target_directions=y, reduction="sum"), parts)["bias"]
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    layer = [parts[name] for name in ("features", "weight", "bias")]
    (planet,) = torch.autograd.grad(cross_entropy_loss(*layer, nearest, reduction="sum"), parts["bias"])
    torch.testing.assert_close(found, planet, atol=1e-9, rtol=1e-9)
    floored = gradients(mvmf_loss(**parts, target_directions=y, reduction="sum", floor=1e-9), parts)["bias"]
    assert floored.abs().max() < 1e-12  # the broken twin: a floor takes that gradient away


@pytest.mark.parametrize(("log_kappa", "cut_km"), [(16.0, 10.6), (14.0, 28.8), (10.0, 213.0)])
def test_row_12_floor_halves_the_gradient_where_the_authors_code_does(log_kappa, cut_km):
    """PRIOR_ART row 12: c = 2^15, equal weights; floor 1e-9 in their unit is 1e-9 kappa / (2 pi e^2) per steradian."""
    c, near = 2**15, torch.zeros(1, 3, dtype=F64)
    near[0, 2] = 1.0
    mu = torch.cat([near, directions(c - 1, 0)])
    mu[1:, 2] = -mu[1:, 2].abs()  # all others on the far side
    km = torch.linspace(0.9 * cut_km, 1.1 * cut_km, 41, dtype=F64)
    arc = km / sphere.EARTH_RADIUS_KM
    y = torch.stack([arc.sin(), torch.zeros_like(arc), arc.cos()], dim=1)
    features = torch.zeros(41, 1, requires_grad=True)
    weight = torch.zeros(c, 1)
    weight[0] = 1.0
    rest = (weight, torch.zeros(c), mu, torch.full((c,), log_kappa, dtype=F64), y)
    pulls = []
    for floor in (None, 1e-9 * math.exp(log_kappa) / (2 * math.pi * math.e**2)):
        loss = mvmf_loss(features, *rest, reduction="sum", floor=floor)
        pulls.append(torch.autograd.grad(loss, features)[0][:, 0])
    half = float(np.interp(-0.5, -(pulls[1] / pulls[0]).numpy(), km.numpy()))
    assert half == pytest.approx(cut_km, rel=0.005)


def test_components_left_out_never_counted(narrow_chunks):
    """Whatever the concentrations: the sum over pairs is that over all components, to the last digits."""
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        parts, y = problem(n=30, c=400, seed=seed, near=bool(seed % 2))
        parts["log_concentrations"] = (torch.rand(400, generator=generator, dtype=F64) * 24.0 - 4.0).requires_grad_()
        loss = mvmf_loss(**parts, target_directions=y, reduction="none")
        torch.testing.assert_close(loss, whole(parts, y), rtol=1e-13, atol=1e-12)


def test_a_mean_direction_a_little_off_length_1_is_no_trap():
    """As an optimiser leaves it within a step."""
    parts, y = problem(log_kappa=(5.0, 15.0))
    parts["mean_directions"] = (parts["mean_directions"] * 0.91).detach().requires_grad_()
    short = (1.0 - 9e-5) * y
    torch.testing.assert_close(mvmf_loss(**parts, target_directions=short, reduction="none"), whole(parts, short))


@pytest.mark.parametrize("where", ["features", "target"])
def test_a_row_that_is_nan_shows_and_spares_the_others(where):
    parts, y = problem()
    parts = {name: part.detach() for name, part in parts.items()}
    clean = mvmf_loss(**parts, target_directions=y, reduction="none")
    (parts["features"] if where == "features" else y)[2] = math.nan
    dirty = mvmf_loss(**parts, target_directions=y, reduction="none")
    assert torch.isnan(dirty).tolist() == [row == 2 for row in range(7)]
    assert torch.equal(clean[~torch.isnan(dirty)], dirty[~torch.isnan(dirty)])


@pytest.mark.parametrize("name", ["weight", "bias", "mean_directions", "log_concentrations", "sample_weight"])
def test_a_parameter_that_is_nan_shows(name):
    """Training names the rows of such a loss; a ValueError would be no news of a step that went wrong."""
    parts, y = problem()
    parts |= {"sample_weight": torch.ones(7, dtype=F64)}
    parts[name] = parts[name].detach().clone()
    parts[name][3] = math.nan
    assert math.isnan(float(mvmf_loss(**parts, target_directions=y).detach()))


def test_an_empty_batch_has_no_losses():
    parts, y = problem()
    parts["features"] = torch.zeros(0, 5, dtype=F64, requires_grad=True)
    assert math.isnan(float(mvmf_loss(**parts, target_directions=y[:0]).detach()))
    each = mvmf_loss(**parts, target_directions=y[:0], reduction="none")
    assert each.shape == (0,)
    assert all(not gradient.any() for gradient in gradients(each.sum(), parts).values())


def test_repeatable_under_deterministic_algorithms():
    parts, y = problem(dtype=torch.float32)
    parts["features"] = parts["features"].detach().T.contiguous().T.requires_grad_()  # of another memory order
    torch.use_deterministic_algorithms(True)
    try:
        first, again = (gradients(mvmf_loss(**parts, target_directions=y), parts) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[name], again[name]) for name in parts)


def test_sample_weights_and_reductions():
    parts, y = problem()
    each = mvmf_loss(**parts, target_directions=y, reduction="none").detach()
    weight = torch.arange(1.0, 8.0, dtype=F64)

    def found(**options):
        return float(mvmf_loss(**parts, target_directions=y, **options).detach())

    assert found() == pytest.approx(float(each.mean()))
    assert found(reduction="sum") == pytest.approx(float(each.sum()))
    assert found(sample_weight=weight) == pytest.approx(float((each * weight).sum() / weight.sum()))
    assert found(sample_weight=weight, reduction="sum") == pytest.approx(float((each * weight).sum()))
    weighted = mvmf_loss(**parts, target_directions=y, sample_weight=weight, reduction="none")
    torch.testing.assert_close(weighted.detach(), each * weight)
    assert found(sample_weight=10.0 * weight) == pytest.approx(found(sample_weight=weight))


def test_autocast_of_a_cpu_changes_nothing():
    parts, y = problem(dtype=torch.float32, log_kappa=(16.0, 16.0))
    exact = mvmf_loss(**parts, target_directions=y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mvmf_loss(**parts, target_directions=y)
        found = gradients(inside, parts)  # the backward pass, too, inside
    assert torch.equal(inside, exact)
    outside = gradients(exact, parts)
    assert all(torch.equal(found[name], outside[name]) for name in parts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tensors_are_multiplied_in_float32(dtype):
    parts, y = problem(dtype=dtype, log_kappa=(16.0, 16.0))
    loss = mvmf_loss(**parts, target_directions=y)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(whole(parts, y).mean().detach()), abs=1e-4)
    found = gradients(loss, parts)
    assert found["weight"].dtype == found["features"].dtype == dtype
    assert found["mean_directions"].dtype == F64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu_also_under_autocast():
    parts, y = problem(n=64, d=32, c=5000, dtype=torch.float32, log_kappa=(10.0, 16.0))
    there = {name: part.detach().cuda().requires_grad_() for name, part in parts.items()}
    exact, found = mvmf_loss(**parts, target_directions=y), mvmf_loss(**there, target_directions=y.cuda())
    torch.testing.assert_close(found.cpu(), exact, rtol=1e-5, atol=1e-4)
    expected = gradients(exact, parts)
    for name, gradient in gradients(found, there).items():
        torch.testing.assert_close(gradient.cpu(), expected[name], rtol=1e-3, atol=1e-5)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        rounded = mvmf_loss(**there, target_directions=y.cuda())
    assert abs(float(rounded.detach()) - float(exact.detach())) < 0.05


@pytest.mark.parametrize("budget", [0, 4 * 16 * 8, None])
def test_cross_entropy_equals_torchs(budget, narrow_chunks):
    parts, _ = problem(n=6, c=40)
    layer = {name: parts[name] for name in ("features", "weight", "bias")}
    target = torch.tensor([0, 15, 16, 31, 38, 39])
    weight = torch.tensor([1.0, 0.0, 2.0, 3.0, 1.0, 0.5], dtype=F64)
    found = cross_entropy_loss(*layer.values(), target, sample_weight=weight, logit_budget_bytes=budget)
    logits = layer["features"] @ layer["weight"].T + layer["bias"]
    each = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    expected = (each * weight).sum() / weight.sum()
    torch.testing.assert_close(found, expected)
    exact = gradients(expected, layer)
    for name, gradient in gradients(found, layer).items():
        torch.testing.assert_close(gradient, exact[name])
    assert torch.autograd.gradcheck(lambda *t: cross_entropy_loss(*t, target, reduction="none"), tuple(layer.values()))


PEAK = """
import re, torch
from geo_mvmf.model.loss import cross_entropy_loss, log_density, mvmf_loss
torch.set_num_threads(1)
n, c, d = 128, 2**17, 4
mu = torch.nn.functional.normalize(torch.randn(c, 3, dtype=torch.float64), dim=1)
x, w, b = torch.randn(n, d, requires_grad=True), torch.zeros(c, d, requires_grad=True), torch.zeros(c)
log_kappa = torch.full((c,), 8.0).double()
def mvmf(c):
    return mvmf_loss(x, w[:c], b[:c], mu[:c], log_kappa[:c], mu[:n], logit_budget_bytes=0)
def classes(c):
    return cross_entropy_loss(x, w[:c], b[:c], torch.arange(n) % c, logit_budget_bytes=0)
def plain(c):
    z = torch.nn.functional.linear(x, w[:c], b[:c])
    return (torch.logsumexp(z, 1) - torch.logsumexp(z + log_density(mu[:n], mu[:c], log_kappa[:c]).float(), 1)).mean()
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024
for loss in (mvmf, classes, plain):
    loss(8).backward()
w.grad = None
before = peak()
for losses in ((mvmf, classes), (plain,)):
    for loss in losses:
        loss(c).backward()
        w.grad = None
    print((peak() - before) / (n * c * 4))
"""


@pytest.mark.hard
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_memory_stays_bounded_with_2_to_the_17_components():
    """Peak of both passes beyond a tiny call, in (N, C) float32 arrays of N = 128: 0.20, half of it columns of C."""
    # Left to itself, the allocator keeps what was freed, in amounts that depend on the moment: 0.23 to 0.52.
    exact = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, env=exact)
    streamed, plain = map(float, done.stdout.split())
    assert streamed < 0.35
    assert plain > 2.0  # the twin that holds whole arrays


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bias": torch.zeros(39)}, r"bias has shape \(39,\), expected \(40,\)"),
        ({"features": torch.zeros(7)}, r"features and weight have shapes \(7,\), \(40, 5\)"),
        ({"weight": torch.zeros(0, 5)}, "with C >= 1"),
        ({"weight": torch.zeros(5, 40)}, r"weight has shape \(5, 40\), expected \(C, 5\): features have 5 columns"),
        ({"target_directions": torch.zeros(7, 2)}, r"target_directions has shape \(7, 2\), expected \(7, 3\)"),
        ({"mean_directions": torch.zeros(40, 2)}, r"mean_directions has shape \(40, 2\), expected \(40, 3\)"),
        ({"sample_weight": torch.ones(7, 1)}, r"sample_weight has shape \(7, 1\), expected \(7,\)"),
        ({"reduction": "median"}, "reduction 'median' is not one of mean, sum, none"),
        ({"kept_type": "float16"}, "kept_type 'float16' is not None or bfloat16"),
        ({"floor": 0.0}, r"floor 0\.0 must be a positive density"),
        ({"floor": math.nan}, "floor nan must be a positive density"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(changed, message):
    parts, y = problem()
    with pytest.raises(ValueError, match=message):
        mvmf_loss(**({**parts, "target_directions": y} | changed))


def with_row(tensor, row, change):
    changed = tensor.detach().clone()
    changed[row] = change(changed[row])
    return changed


@pytest.mark.parametrize(
    ("name", "row", "change", "message"),
    [
        (
            "target_directions",
            4,
            lambda y: 2.0 * y,
            "row 4 has length 2, which is not in 0.9999..1.0001; they are unit",
        ),
        ("target_directions", 6, lambda y: 0.0 * y, "row 6 has length 0, "),
        ("target_directions", 0, lambda y: 1.0002 * y, "row 0 has length 1.0002, "),
        ("target_directions", 0, lambda y: math.inf * y.sign(), "row 0 has length inf, "),
        (
            "mean_directions",
            39,
            lambda mu: 0.89 * mu,
            "row 39 has length 0.89, which is not in 0.9..1.1; normalise them",
        ),
        ("mean_directions", 1, lambda mu: 1.11 * mu, "row 1 has length 1.11, "),
        ("mean_directions", 0, lambda mu: 0.0 * mu, "row 0 has length 0, "),
        (
            "log_concentrations",
            2,
            lambda _: math.exp(8.0),
            "row 2 has value 2980.96, which is not in -60..60; they are",
        ),
        ("log_concentrations", 0, lambda _: -math.inf, "row 0 has value -inf, "),
        ("sample_weight", 5, lambda _: -1e-3, "row 5 has value -0.001, which is not 0 or more; 0 leaves a row out"),
    ],
)
def test_values_that_would_be_plausible_nonsense_are_named(name, row, change, message):
    parts, y = problem()
    parts |= {"target_directions": y, "sample_weight": torch.ones(7)}
    with pytest.raises(ValueError, match=re.escape(f"{name}: {message}")):
        mvmf_loss(**(parts | {name: with_row(parts[name], row, change)}))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_directions_of_any_precision_that_has_enough_of_it_are_unit_vectors(dtype):
    parts, y = problem()
    parts["mean_directions"] = parts["mean_directions"].detach().bfloat16()
    mvmf_loss(**parts, target_directions=y.to(dtype))
    with pytest.raises(ValueError, match="target_directions: row"):  # 0.1 degrees off
        mvmf_loss(**parts, target_directions=y.bfloat16())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"log_concentrations": 8.0}, r"log_concentrations is of type float, expected a torch.Tensor of shape \(40,\)"),
        ({"target_directions": np.zeros((7, 3))}, r"target_directions is of type ndarray, .* of shape \(7, 3\)"),
        ({"mean_directions": None}, r"mean_directions is of type NoneType, .* of shape \(40, 3\)"),
        ({"sample_weight": [1.0] * 7}, r"sample_weight is of type list, .* of shape \(7,\)"),
        ({"bias": 0.0}, r"bias is of type float, .* of shape \(40,\)"),
        ({"features": np.zeros((7, 5))}, r"features is of type ndarray, .* of shape \(N, D\)"),
        ({"weight": torch.nn.Linear(5, 40)}, r"weight is of type Linear, .* of shape \(C, D\)"),
    ],
)
def test_what_is_no_tensor_is_named(changed, message):
    parts, y = problem()
    with pytest.raises(TypeError, match=message):
        mvmf_loss(**({**parts, "target_directions": y} | changed))


def test_no_bias_is_a_bias_of_zeros():
    parts, y = problem()
    zero = {**parts, "bias": torch.zeros(40, dtype=F64)}
    layer = [parts["features"], parts["weight"]]
    expected = gradients(mvmf_loss(**zero, target_directions=y), {"weight": parts["weight"]})["weight"]
    loss = mvmf_loss(**(parts | {"bias": None}), target_directions=y)
    assert torch.equal(gradients(loss, {"weight": parts["weight"]})["weight"], expected)
    assert torch.equal(
        cross_entropy_loss(*layer, None, torch.arange(7)), cross_entropy_loss(*layer, zero["bias"], torch.arange(7))
    )


def test_functional_transforms_are_refused_by_torch_as_the_page_says():
    parts, y = problem()
    features, *rest = (part.detach() for part in parts.values())
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: mvmf_loss(x, *rest, y))(features)
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.vmap(lambda row: mvmf_loss(row[None], *rest, y[:1]))(features)


@pytest.mark.parametrize("wrong", [-1, 40])
def test_a_class_out_of_range_is_named(wrong):
    parts, _ = problem()
    target = torch.tensor([0, 1, wrong, 3, 4, 5, 6])
    with pytest.raises(ValueError, match=f"row 2 has class {wrong}, not in 0..39"):
        cross_entropy_loss(parts["features"], parts["weight"], parts["bias"], target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_classes_that_are_no_whole_numbers_are_refused(dtype):
    """2.7 would be class 2."""
    parts, _ = problem()
    with pytest.raises(ValueError, match=f"target has dtype {dtype}, expected whole numbers"):
        cross_entropy_loss(parts["features"], parts["weight"], parts["bias"], torch.ones(7).to(dtype))


def mvmf_of(parts, y, reduction):
    return mvmf_loss(**parts, target_directions=y, reduction=reduction).sum()


def classification_of(parts, y, reduction):
    layer = parts["features"], parts["weight"], parts["bias"]
    return cross_entropy_loss(*layer, torch.arange(7), reduction=reduction).sum()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss_of", [mvmf_of, classification_of])
def test_a_penalty_on_gradients_is_refused_and_not_left_out(loss_of, reduction):
    parts, y = problem()
    (gradient,) = torch.autograd.grad(loss_of(parts, y, reduction), parts["features"], create_graph=True)
    plain = torch.autograd.grad(loss_of(parts, y, reduction), parts["features"])[0]
    assert torch.equal(gradient, plain)  # who only looks at it is not refused
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        gradient.square().sum().backward()


def test_torchs_own_mark_would_leave_a_penalty_out():
    """The broken twin of the test above, of the mean."""

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 3.0 * gradient * ctx.saved_tensors[0] ** 2

    x = torch.ones(2, requires_grad=True)
    (gradient,) = torch.autograd.grad(Twice.apply(x).mean(), x, create_graph=True)
    assert not gradient.requires_grad


def test_gradients_that_stay_in_a_graph_may_be_changed_in_place():
    parts, y = problem()
    (expected,) = torch.autograd.grad(mvmf_loss(**parts, target_directions=y), parts["weight"])
    weight = 1.0 * parts["weight"]
    weight.register_hook(lambda gradient: gradient.mul_(2.0))
    loss = mvmf_loss(**(parts | {"weight": weight}), target_directions=y)
    (found,) = torch.autograd.grad(loss, parts["weight"], create_graph=True)
    assert torch.equal(found, 2.0 * expected)
