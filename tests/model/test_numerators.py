"""The numerator of the MvMF loss: the certificate of what is left out, and its twin without one."""

import numpy as np
import pytest
import torch

from geo_mvmf import s2, sphere
from geo_mvmf.model import numerators
from geo_mvmf.model.components import log_density
from geo_mvmf.model.loss import mvmf_loss

F64 = torch.float64


def layer(c=3000, n=20, d=6, seed=0, dtype=F64, log_kappa=14.0):
    """Random components along a curve, targets near them, a layer that knows nothing."""
    generator = np.random.default_rng(seed)
    mu = sphere.random_directions(c, generator)
    mu = torch.from_numpy(mu[np.argsort(s2.leaf_ids(mu))])
    y = torch.from_numpy(sphere.random_directions(n, generator))
    shapes = {"features": (n, d), "weight": (c, d), "bias": (c,)}
    parts = {name: torch.from_numpy(generator.normal(size=shape)).to(dtype) for name, shape in shapes.items()}
    parts |= {"mean_directions": mu, "log_concentrations": torch.full((c,), log_kappa, dtype=F64)}
    return {name: part.requires_grad_() for name, part in parts.items()}, y


def whole(parts, y):
    p = {name: part.double() for name, part in parts.items()}
    z = p["features"] @ p["weight"].T + p["bias"]
    joint = z + log_density(y, p["mean_directions"], p["log_concentrations"])
    return torch.logsumexp(z, dim=1) - torch.logsumexp(joint, dim=1)


def misled(parts, y, by=1000.0):
    """Components near the first targets become e^-by times as likely: farther ones count instead."""
    near = (y[:3] @ parts["mean_directions"].detach().T).topk(20, dim=1).indices
    with torch.no_grad():
        parts["bias"][near.flatten()] -= by
    return parts


@pytest.mark.parametrize(("dtype", "rel"), [(F64, 1e-12), (torch.float32, 1e-6)])
def test_rows_whose_near_components_are_unlikely_are_summed_over_all(dtype, rel, monkeypatch):
    parts, y = layer(dtype=dtype, log_kappa=10.0)
    misled(parts, y)
    loss, expected = mvmf_loss(**parts, target_directions=y, reduction="none"), whole(parts, y)
    np.testing.assert_allclose(loss.detach(), expected.detach(), rtol=rel)
    found, exact = (torch.autograd.grad(each.sum(), list(parts.values())) for each in (loss, expected))
    for name, a, b in zip(parts, found, exact, strict=True):
        assert float((a - b).norm() / b.norm()) < 10.0 * rel, name

    monkeypatch.setattr(numerators.NearComponents, "_sum_all", lambda *_: None)  # the twin without the certificate
    wrong = mvmf_loss(**parts, target_directions=y, reduction="none")
    assert float((wrong - expected).abs().detach().amax()) > 1.0


def test_the_certificate_is_asked_of_few_rows(monkeypatch):
    seen = []
    exact = numerators._sum_of_all

    def counted(some, components, y):
        seen.append(len(y))
        return exact(some, components, y)

    monkeypatch.setattr(numerators, "_sum_of_all", counted)
    parts, y = layer(log_kappa=10.0)
    mvmf_loss(**parts, target_directions=y)
    assert seen == []
    mvmf_loss(**misled(parts, y), target_directions=y)
    assert len(seen) == 1
    assert 3 <= seen[0] < 8  # and whoever shares their components


@pytest.mark.parametrize("log_kappa", [-6.0, 2.0, 5.0, 6.0, 9.0])
@pytest.mark.parametrize("trained", [("mean_directions",), ("log_concentrations",), ("weight",)])
def test_pairs_and_every_component_agree(log_kappa, trained, monkeypatch):
    parts, y = layer(log_kappa=log_kappa, c=500, n=16)
    parts = {name: part if name in trained else part.detach() for name, part in parts.items()}
    each = []
    for sparse, always in ((1, 1 << 30), (1 << 30, 0)):
        monkeypatch.setattr(numerators, "_SPARSE", sparse)
        monkeypatch.setattr(numerators, "_ALWAYS", always)
        loss = mvmf_loss(**parts, target_directions=y)
        each.append((loss.detach(), torch.autograd.grad(loss, parts[trained[0]])[0]))
    for a, b in zip(*each, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("log_kappa", [0.0, 4.9])
def test_coordinates_in_float32_do_where_concentrations_are_small(log_kappa, monkeypatch):
    parts, y = layer(log_kappa=log_kappa, dtype=torch.float32)
    expected = whole(parts, y)
    loss = mvmf_loss(**parts, target_directions=y, reduction="none")
    assert float((loss - expected).abs().detach().amax()) < 1e-5
    monkeypatch.setattr(numerators, "_SINGLE_BELOW", 1e30)  # the twin that takes them for large ones, too
    monkeypatch.setattr(numerators, "_SPARSE", 1 << 30)
    monkeypatch.setattr(numerators, "_ALWAYS", 0)
    parts, y = layer(log_kappa=18.0, dtype=torch.float32)
    wrong = mvmf_loss(**parts, target_directions=y, reduction="none")
    assert float((wrong - whole(parts, y)).abs().detach().amax()) > 1e-2


def test_every_component_wants_the_logits(monkeypatch):
    monkeypatch.setattr(numerators, "_ALWAYS", 0)
    parts, y = layer(log_kappa=0.0)
    every = numerators.numerator_of(parts["mean_directions"].detach(), parts["log_concentrations"].detach(), y, F64)
    assert every.whole_logits
    with pytest.raises(ValueError, match="needed whole"):
        every.subtract(0, slice(0, 1), None, torch.zeros(20), torch.zeros(20), torch.zeros(20, 1))
    with pytest.raises(ValueError, match="not asked for"):
        every.by_components(None, y, torch.zeros(20))
