"""The MvMF loss against float64, autograd, finite differences and closed forms (acceptance rows 2-6, 8, 9, 11, 12)."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from geo_mvmf import sphere, vmf
from geo_mvmf.mixture import VmfMixture
from geo_mvmf.model import loss as module
from geo_mvmf.model.loss import log_density, log_normaliser, mvmf_loss

KM = sphere.EARTH_RADIUS_KM


def directions(n, seed):
    return torch.from_numpy(sphere.random_directions(n, np.random.default_rng(seed)))


def problem(n=7, d=5, c=40, log_kappa=(0.0, 20.0), dtype=torch.float64, seed=0, near=True):
    generator = torch.Generator().manual_seed(seed)
    mu = directions(c, seed + 1)
    y = mu[:n] + 1e-3 * torch.randn(n, 3, generator=generator, dtype=torch.float64) if near else directions(n, seed + 2)
    y = y / y.norm(dim=1, keepdim=True)
    parts = {
        "features": torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype),
        "weight": torch.randn(c, d, generator=generator, dtype=torch.float64).to(dtype),
        "bias": torch.randn(c, generator=generator, dtype=torch.float64).to(dtype),
        "mean_directions": mu,
        "log_concentrations": torch.linspace(*log_kappa, c, dtype=torch.float64),
    }
    return {name: part.requires_grad_() for name, part in parts.items()}, y


def naive(parts, y, log_f=log_density):
    """The plain form in float64: every array whole, gradients by autograd."""
    p = {name: part.double() for name, part in parts.items()}
    z = p["features"] @ p["weight"].T + p["bias"]
    joint = torch.log_softmax(z, dim=1) + log_f(y, p["mean_directions"], p["log_concentrations"])
    return -torch.logsumexp(joint, dim=1)


def test_equals_the_mixture_density_of_numpy():
    parts, y = problem(log_kappa=(-3.0, 18.0))
    z = (parts["features"] @ parts["weight"].T + parts["bias"]).detach()
    mixture = VmfMixture(
        parts["mean_directions"].detach(), parts["log_concentrations"].detach(), torch.log_softmax(z, 1)
    )
    expected = -np.diag(mixture.log_density(y))
    np.testing.assert_allclose(mvmf_loss(**parts, target_directions=y, reduction="none").detach(), expected, rtol=1e-12)


@pytest.mark.parametrize("chunk", [3, 16, 4096])
@pytest.mark.parametrize("budget", [0, 500, None])
def test_gradients_equal_autograds_in_float64(chunk, budget, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    parts, y = problem()
    weight = torch.rand(7, dtype=torch.float64)
    mvmf_loss(**parts, target_directions=y, sample_weight=weight, logit_budget_bytes=budget).backward()
    found = {name: part.grad.clone() for name, part in parts.items()}
    for part in parts.values():
        part.grad = None
    ((naive(parts, y) * weight).sum() / weight.sum()).backward()
    for name, part in parts.items():
        scale = part.grad.norm()
        error = float((found[name] - part.grad).norm() / scale)
        assert error <= 1e-9, (name, error)


def test_gradients_pass_finite_differences():
    parts, y = problem(n=3, d=2, c=5, log_kappa=(-8.0, 4.0))
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(
            lambda *tensors, r=reduction: mvmf_loss(*tensors, y, reduction=r), tuple(parts.values())
        )


def test_row_2_kappa_to_zero_is_uniform():
    y = directions(4, 1)
    value = log_density(y, directions(3, 2), torch.full((3,), -12.0, dtype=torch.float64))
    np.testing.assert_allclose(value, -math.log(4 * math.pi), atol=2e-5)


@pytest.mark.parametrize("start", [-2.0, 4.0, 9.0])
def test_row_3_concentration_trains_to_its_optimum(start):
    generator = np.random.default_rng(3)
    mu = np.tile([[0.0, 0.0, 1.0]], (4000, 1))
    y = torch.from_numpy(vmf.sample(mu, np.full(4000, 5.0), generator))
    mean = y.mean(0, keepdim=True) / y.mean(0).norm()
    log_kappa = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([log_kappa], lr=0.1)
    for step in range(240):
        optimiser.param_groups[0]["lr"] = 0.1 if step < 120 else 0.01
        optimiser.zero_grad()
        n = len(y)
        mvmf_loss(torch.zeros(n, 1), torch.zeros(1, 1), torch.zeros(1), mean, log_kappa, y).backward()
        optimiser.step()
    optimum = -math.log(float((1 - y @ mean[0]).mean()))  # 1 / mean(1 - cos) for a narrow component
    assert abs(float(log_kappa) - optimum) < 0.02


def test_row_4_derivative_by_concentration_is_continuous():
    y, mu = torch.tensor([[0.0, 0.6, 0.8]], dtype=torch.float64), torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)

    def derivative(value):
        log_kappa = torch.tensor([value], dtype=torch.float64, requires_grad=True)
        mvmf_loss(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1), mu, log_kappa, y).backward()
        return float(log_kappa.grad)

    def value(log_kappa):
        return -float(vmf.log_density(y[0], mu[0], log_kappa))

    for log_kappa in np.linspace(-8.0, 20.0, 113):
        h = 1e-5
        difference = (value(log_kappa + h) - value(log_kappa - h)) / (2 * h)
        assert derivative(log_kappa) == pytest.approx(difference, rel=1e-6, abs=1e-9)


def test_row_5_longitude_180_apart_differs_and_360_does_not():
    parts, _ = problem(near=False)
    values = [
        float(mvmf_loss(**parts, target_directions=torch.from_numpy(sphere.to_directions([lon] * 7, [48.0] * 7))))
        for lon in (2.0, 182.0, 362.0)
    ]
    assert abs(values[0] - values[1]) > 1e-3
    assert values[0] == pytest.approx(values[2], rel=1e-9)


def test_row_6_rotation_invariance():
    parts, y = problem()
    turn = torch.from_numpy(sphere.rotation_matrix(np.random.default_rng(5)))
    before = mvmf_loss(**parts, target_directions=y)
    after = mvmf_loss(**{**parts, "mean_directions": parts["mean_directions"] @ turn.T}, target_directions=y @ turn.T)
    assert float(before) == pytest.approx(float(after), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row_8_finite_far_from_every_component(dtype):
    parts, _ = problem(n=1, c=2, dtype=dtype, log_kappa=(20.0, 20.0))
    mu = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1e-6, 1.0]], dtype=torch.float64)
    parts["mean_directions"] = (mu / mu.norm(dim=1, keepdim=True)).requires_grad_()
    y = torch.tensor([[0.0, 0.0, -1.0]], dtype=torch.float64)
    value = mvmf_loss(**parts, target_directions=y)
    value.backward()
    assert torch.isfinite(value)
    for part in parts.values():
        assert torch.isfinite(part.grad).all()
    assert parts["weight"].grad.abs().sum() > 0  # the attraction of far targets is not lost
    # The twin without logsumexp that others use is infinite here.
    density = torch.exp(log_density(y, mu, torch.full((2,), 20.0, dtype=torch.float64))).sum()
    assert torch.isinf(-torch.log(density))


@pytest.mark.parametrize(("log_kappa", "bound"), [(8.0, 1e-4), (16.0, 1e-3), (20.0, 2e-3)])
def test_row_9_float32_is_exact_at_street_level(log_kappa, bound):
    parts, y = problem(n=20, c=400, dtype=torch.float32, log_kappa=(log_kappa, log_kappa))
    sigma = math.exp(-log_kappa / 2)
    y = parts["mean_directions"].detach()[:20] + 3 * sigma * directions(20, 9)
    y = y / y.norm(dim=1, keepdim=True)
    exact = naive(parts, y).detach()
    found = mvmf_loss(**parts, target_directions=y, reduction="none").detach()
    assert float((found.double() - exact).abs().max()) < bound

    def dot_product(y, mu, log_kappa):
        kappa = log_kappa.float().exp()
        return (log_normaliser(log_kappa.float()) - kappa + kappa * (y.float() @ mu.float().T)).double()

    if log_kappa >= 16.0:  # the broken twin: the dot product in float32
        assert float((naive(parts, y, dot_product).detach() - exact).abs().max()) > 10 * bound


def test_row_11_large_concentration_is_cross_entropy_on_the_nearest():
    parts, y = problem(n=6, c=30, log_kappa=(20.0, 20.0), near=False)
    parts["features"].requires_grad_(False)
    bias = parts["bias"]
    mvmf_loss(**parts, target_directions=y, reduction="sum").backward()
    z = (parts["features"] @ parts["weight"].T + bias).detach()
    nearest = torch.cdist(y, parts["mean_directions"].detach()).argmin(dim=1)
    expected = (torch.softmax(z, 1) - torch.nn.functional.one_hot(nearest, 30)).sum(0)
    torch.testing.assert_close(bias.grad, expected, atol=1e-9, rtol=1e-9)
    bias.grad = None  # the broken twin: a floor takes that gradient away
    mvmf_loss(**parts, target_directions=y, reduction="sum", floor=1e-9).backward()
    assert (bias.grad - expected).abs().max() > 0.1


@pytest.mark.parametrize(("log_kappa", "cut_km"), [(16.0, 10.6), (14.0, 28.8), (10.0, 213.0)])
def test_row_12_floor_cuts_where_the_authors_code_does(log_kappa, cut_km):
    c = 2**15
    floor = 1e-9 * math.exp(log_kappa) / (2 * math.pi * math.e**2)
    angle = cut_km / KM
    y = torch.tensor([[math.sin(angle), 0.0, math.cos(angle)]], dtype=torch.float64)
    mu = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    # one component near, all others on the far side: the weight of each is 1 / c
    log_f = log_density(y, mu, torch.tensor([log_kappa], dtype=torch.float64)) - math.log(c)
    share = float(torch.sigmoid(log_f - math.log(floor)))
    assert share == pytest.approx(0.5, abs=0.03)


def test_sample_weights_and_reductions():
    parts, y = problem()
    each = mvmf_loss(**parts, target_directions=y, reduction="none")
    weight = torch.arange(1.0, 8.0, dtype=torch.float64)
    found = mvmf_loss(**parts, target_directions=y, sample_weight=weight)
    assert float(found) == pytest.approx(float((each * weight).sum() / weight.sum()))
    assert float(mvmf_loss(**parts, target_directions=y, reduction="sum")) == pytest.approx(float(each.sum()))


def test_bfloat16_autocast_leaves_coordinates_alone():
    parts, y = problem(dtype=torch.float32, log_kappa=(16.0, 16.0))
    exact = float(mvmf_loss(**parts, target_directions=y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = float(mvmf_loss(**parts, target_directions=y))
    assert abs(rounded - exact) < 0.2  # logits are rounded to bfloat16; coordinates at kappa e^16 would cost 1e4 nats


MEMORY = """
import re, torch
from geo_mvmf.model.loss import mvmf_loss
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024
torch.set_num_threads(1)
n, c, d = 256, 2**17, 4
mu = torch.nn.functional.normalize(torch.randn(c, 3, dtype=torch.float64), dim=1)
x, w, b = torch.randn(n, d, requires_grad=True), torch.zeros(c, d, requires_grad=True), torch.zeros(c)
small = [t[:64] for t in (w, b, mu)]
mvmf_loss(x, *small, torch.full((64,), 8.0).double(), mu[:n], logit_budget_bytes=0).backward()
before = peak()
mvmf_loss(x, w, b, mu, torch.full((c,), 8.0).double(), mu[:n], logit_budget_bytes=0).backward()
print((peak() - before) / (n * c * 4))
"""


def test_memory_stays_bounded_with_2_to_the_17_components():
    """The peak beyond a tiny call is a fraction of one (batch, components) array of float32."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.6


def test_wrong_arguments_say_what_is_wrong():
    parts, y = problem()
    with pytest.raises(ValueError, match=r"bias has shape \(39,\), expected \(40,\)"):
        mvmf_loss(**{**parts, "bias": parts["bias"][:-1]}, target_directions=y)
    with pytest.raises(ValueError, match="reduction 'median'"):
        mvmf_loss(**parts, target_directions=y, reduction="median")
    with pytest.raises(ValueError, match=r"floor 0\.0"):
        mvmf_loss(**parts, target_directions=y, floor=0.0)
