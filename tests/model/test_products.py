"""Providers of matrix products: the same values, and a choice that can be made and kept."""

import pytest
import torch

from geo_mvmf.errors import UsageError
from geo_mvmf.model import checkpoint, products, run_folder
from geo_mvmf.model.loss import mvmf_loss

needs_onednn = pytest.mark.skipif(products._onednn() is None, reason="this torch has no oneDNN product")


@needs_onednn
@pytest.mark.parametrize("provider", products.PROVIDERS)
def test_products_of_every_provider_are_right(provider):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=generator) for shape in ((30, 50), (50, 20)))
    for left, right in ((a, b), (a.T.contiguous().T, b.T.contiguous().T)):
        out = torch.full((30, 20), 2.0)
        with products.using(provider):
            products.multiply(left, right, out, add=True)
            torch.testing.assert_close(out, a @ b + 2.0)
            products.multiply(left, right, out)
        torch.testing.assert_close(out, a @ b)


@needs_onednn
def test_the_loss_is_the_same_with_every_provider():
    generator = torch.Generator().manual_seed(0)
    mu = torch.nn.functional.normalize(torch.randn(700, 3, generator=generator, dtype=torch.float64))
    x, weight = torch.randn(9, 5, generator=generator), torch.randn(700, 5, generator=generator)
    losses, gradients = [], []
    for provider in products.PROVIDERS:
        features, layer = x.clone().requires_grad_(), weight.clone().requires_grad_()
        with products.using(provider):
            assert products.by_onednn(x) == (provider == "onednn")
            loss = mvmf_loss(features, layer, torch.ones(700), mu, torch.full((700,), 9.0).double(), mu[:9])
            losses.append(loss.detach())
            gradients.append(torch.autograd.grad(loss, [features, layer]))
    torch.testing.assert_close(*losses)
    for mm, onednn in zip(*gradients, strict=True):
        torch.testing.assert_close(mm, onednn)


def test_the_environment_decides_whatever_the_processor(monkeypatch):
    monkeypatch.setattr(products, "_processor", lambda: pytest.fail("it was looked at"))
    monkeypatch.setenv(products.VARIABLE, "mm")
    assert products.chosen.__wrapped__() == "mm"
    monkeypatch.setenv(products.VARIABLE, "mkl")
    with pytest.raises(UsageError, match="'mkl' \\(GEO_MVMF_PRODUCTS\\) is no provider of products; use mm or onednn"):
        products.chosen.__wrapped__()


@needs_onednn
@pytest.mark.parametrize(
    ("processor", "capability", "provider"),
    [
        ("vendor_id\t: GenuineIntel\n", "AVX512", "mm"),
        ("vendor_id\t: AuthenticAMD\n", "AVX512", "onednn"),
        ("vendor_id\t: AuthenticAMD\n", "AVX2", "mm"),
        ("AMD64 Family 25 Model 80 Stepping 0, AuthenticAMD", "AVX512", "onednn"),
        ("", "AVX512", "mm"),
    ],
)
def test_the_processor_decides(processor, capability, provider, monkeypatch):
    monkeypatch.delenv(products.VARIABLE, raising=False)
    monkeypatch.setattr(products, "_processor", lambda: processor)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert products.chosen.__wrapped__() == provider


def test_a_torch_without_the_operator_multiplies_with_mm(monkeypatch):
    monkeypatch.setattr(products, "_onednn", lambda: None)
    assert products.chosen.__wrapped__() == "mm"
    with pytest.raises(UsageError, match="no oneDNN product; use mm"), products.using("onednn"):
        pass


@needs_onednn
@pytest.mark.parametrize(
    ("facts", "provider"), [({"products": "onednn"}, "onednn"), ({"products": "mkl"}, None), ({}, None)]
)
def test_a_run_that_goes_on_multiplies_as_it_began(facts, provider):
    assert run_folder.former("products", checkpoint.Checkpoint(1, {}, facts)) == provider
    assert run_folder.former("products", None) is None


@needs_onednn
@pytest.mark.parametrize(("n", "d"), [(0, 3), (4, 0), (0, 0)])
def test_products_of_nothing(n, d):
    mu = torch.eye(3, dtype=torch.float64)
    rest = torch.zeros(3), mu, torch.ones(3).double(), mu[:1].expand(n, 3)
    found = []
    for provider in products.PROVIDERS:
        x, weight = torch.ones(n, d, requires_grad=True), torch.ones(3, d, requires_grad=True)
        with products.using(provider):
            loss = mvmf_loss(x, weight, *rest, reduction="sum")
            found.append((loss.detach(), *torch.autograd.grad(loss, [x, weight])))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_products_of_rounded_factors_are_not_rounded_themselves(kind):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(*shape, generator=generator).to(kind) for shape in ((30, 500), (500, 20)))
    exact, out = left.double() @ right.double(), torch.full((30, 20), 2.0)
    products.multiply_rounded(left, right, out, add=True)
    torch.testing.assert_close(out.double(), exact + 2.0, rtol=1e-5, atol=1e-5)
    products.multiply_rounded(left, right, out)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    narrow = torch.empty(30, 20, dtype=kind)
    products.multiply_rounded(left, right, narrow)
    assert torch.equal(narrow, out.to(kind))
