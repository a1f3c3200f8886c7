"""Smoothed labels against whole float64 arrays, their limits, and the sphere's symmetries."""

import math

import numpy as np
import pytest
import torch

from geo_mvmf import s2, sphere
from geo_mvmf.errors import UsageError
from geo_mvmf.model import label_smoothing, streaming
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.fused_optimiser import FusedAdam
from geo_mvmf.model.heads import CrossEntropyHead
from geo_mvmf.model.label_smoothing import EveryLabel, LabelSmoothing, NearLabels
from geo_mvmf.model.loss import cross_entropy_loss
from geo_mvmf.model.partition import partition_sphere

F64 = torch.float64
FORMS = {"pairs": (75.0, NearLabels), "whole": (3000.0, EveryLabel)}


@pytest.fixture
def narrow_chunks(monkeypatch):
    """Chunks of 16 classes, so that small problems have several."""
    monkeypatch.setattr(streaming, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(streaming, "_CHUNK_LIMITS", (16, 16))


@pytest.fixture
def few_pairs(monkeypatch):
    """Small problems choose between the forms as large ones do."""
    monkeypatch.setattr(label_smoothing, "_ALWAYS", 0)


def places(n, seed=0):
    return sphere.random_directions(n, np.random.default_rng(seed))


def pigeon(centres, directions, tau_km):
    """The definition, in whole arrays."""
    distance = sphere.angle(directions[:, None], centres[None]) * sphere.EARTH_RADIUS_KM
    labels = np.exp(-(distance - distance.min(axis=1, keepdims=True)) / tau_km)
    return labels / labels.sum(axis=1, keepdims=True)


def dense(labels):
    """The labels of either form as (N, C)."""
    if isinstance(labels, EveryLabel):
        return labels.of(slice(0, labels.shape[0]), slice(0, labels.shape[1]))
    whole = torch.zeros(labels.shape, dtype=F64)
    whole[labels.rows.long(), labels.columns.long()] = labels.shares
    return whole


def layer(n, c, dtype, seed=1, d=5):
    generator = torch.Generator().manual_seed(seed)
    shapes = (n, d), (c, d), (c,)
    return [torch.randn(shape, generator=generator, dtype=F64).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_labels_are_those_of_the_definition_but_for_what_the_certificate_allows(form, dtype, few_pairs):
    tau_km, kind = FORMS[form]
    centres, y = places(3000), places(20, 1)
    labels = LabelSmoothing(centres, tau_km).labels(y, dtype)
    assert isinstance(labels, kind)
    allowed = math.exp(-label_smoothing.MARGIN[dtype]) + 1e-12
    np.testing.assert_allclose(dense(labels), pigeon(centres, y, tau_km), atol=allowed, rtol=1e-9)
    np.testing.assert_allclose(dense(labels).sum(1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("budget", [0, None])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_loss_and_gradients_are_those_of_whole_arrays(form, budget, dtype, narrow_chunks, few_pairs):
    centres, y = places(300), places(9, 1)
    tau_km = {"pairs": 20.0, "whole": 3000.0}[form]
    labels = LabelSmoothing(centres, tau_km).labels(y, dtype)
    assert isinstance(labels, FORMS[form][1])
    parts, weight = layer(9, 300, dtype), torch.arange(9.0)
    found = cross_entropy_loss(*parts, labels, sample_weight=weight, logit_budget_bytes=budget)
    exact = [part.detach().double().requires_grad_() for part in parts]
    logits = exact[0] @ exact[1].T + exact[2]
    each = -(torch.from_numpy(pigeon(centres, y, tau_km)) * torch.log_softmax(logits, 1)).sum(1)
    expected = (each * weight).sum() / weight.sum()
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-13}
    torch.testing.assert_close(found.double(), expected, **tolerance)
    for mine, true in zip(torch.autograd.grad(found, parts), torch.autograd.grad(expected, exact), strict=True):
        torch.testing.assert_close(mine.double(), true, **tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_the_two_forms_are_one_loss(form, narrow_chunks, monkeypatch):
    """Broken twin beside it: pairs that leave out what counts are seen."""
    centres, y = places(200), places(6, 1)
    smoothing, parts = LabelSmoothing(centres, FORMS[form][0]), layer(6, 200, F64)
    near = smoothing.labels(y, F64)
    monkeypatch.setattr(label_smoothing, "_ALWAYS", -1)
    monkeypatch.setattr(label_smoothing, "_SPARSE", 1 << 30)
    every = smoothing.labels(y, F64)
    assert (type(near), type(every)) == (NearLabels, EveryLabel)
    expected = cross_entropy_loss(*parts, every, reduction="none")
    torch.testing.assert_close(cross_entropy_loss(*parts, near, reduction="none"), expected, rtol=1e-12, atol=0.0)
    cut = near.shares * (near.shares > 0.3)
    twin = NearLabels(near.rows, near.columns, cut, *near.shape)
    assert (cross_entropy_loss(*parts, twin, reduction="none") - expected).abs().max() > 1e-3


def test_without_a_distance_the_label_is_the_nearest_centre(narrow_chunks):
    head = CrossEntropyHead(5, partition_sphere(*np.zeros((2, 1)), 40).cell_ids, label_smoothing_km=1e-3)
    y = s2.centre(head.cell_ids)  # the containing cell's own centre is nearest: PlaNet's loss
    x, targets = torch.randn(len(y), 5), torch.from_numpy(y)
    smoothed = head.loss(x, targets, reduction="none")
    head.smooth_labels(None)
    torch.testing.assert_close(smoothed, head.loss(x, targets, reduction="none"))
    # elsewhere it is the nearest centre, which need not be that of the containing cell
    y = places(500, 3)
    nearest = sphere.angle(y[:, None], s2.centre(head.cell_ids)[None]).argmin(axis=1)
    assert 0 < (nearest != head.classes(y)).sum() < 250
    head.smooth_labels(1e-3)
    x, targets = torch.randn(len(y), 5), torch.from_numpy(y)
    expected = cross_entropy_loss(x, head.weight, head.bias, torch.from_numpy(nearest), reduction="none")
    torch.testing.assert_close(head.loss(x, targets, reduction="none"), expected)


def test_far_and_wide_labels_are_all_alike():
    labels = LabelSmoothing(places(50), 2e9).labels(places(3, 1), F64)
    np.testing.assert_allclose(dense(labels), 1 / 50, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_rotation_and_the_seam_of_longitude_change_nothing(form, few_pairs):
    tau_km = FORMS[form][0]
    centres, y = places(1000), places(8, 1)
    expected = dense(LabelSmoothing(centres, tau_km).labels(y, F64))
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    turned = dense(LabelSmoothing(centres @ turn.T, tau_km).labels(y @ turn.T, F64))
    np.testing.assert_allclose(turned, expected, rtol=1e-8, atol=1e-15)
    # two classes as far on either side of 180 degrees
    ends = sphere.to_directions([179.9, -179.9], [10.0, 10.0])
    seam = dense(LabelSmoothing(ends, tau_km).labels(sphere.to_directions([180.0], [10.0]), F64))
    np.testing.assert_allclose(seam, [[0.5, 0.5]], rtol=1e-9)


def test_the_least_loss_belongs_to_predicting_the_labels_and_unnormalised_ones_break_that():
    """The broken twin is PIGEON's: labels that sum to more than 1."""
    centres, y = places(400), places(1, 1)
    labels = LabelSmoothing(centres, 500.0).labels(y, F64)
    bias = dense(labels)[0].clamp(min=1e-300).log().requires_grad_()
    nothing = torch.zeros(1, 1, dtype=F64), torch.zeros(400, 1, dtype=F64)
    (gradient,) = torch.autograd.grad(cross_entropy_loss(*nothing, bias, labels), bias)
    assert gradient.abs().max() < 1e-12
    twin = NearLabels(labels.rows, labels.columns, labels.shares / labels.shares.max(), *labels.shape)
    (gradient,) = torch.autograd.grad(cross_entropy_loss(*nothing, bias, twin), bias)
    assert gradient.abs().max() > 0.1


def test_the_validation_figure_is_the_density_s_and_not_the_labels():
    partition = partition_sphere(*np.zeros((2, 1)), 40)
    plain, smoothed = (CrossEntropyHead(5, partition.cell_ids, label_smoothing_km=tau) for tau in (None, 500.0))
    x, y = torch.randn(7, 5), torch.from_numpy(places(7))
    assert torch.equal(plain.negative_log_density(x, y), smoothed.negative_log_density(x, y))
    expected = -np.diag(smoothed.mixture(x).log_density(y.numpy()))
    np.testing.assert_allclose(smoothed.negative_log_density(x, y), expected, rtol=1e-5)
    assert not torch.allclose(plain.loss(x, y, reduction="none"), smoothed.loss(x, y, reduction="none"))


def test_a_place_outside_of_all_cells_has_labels():
    head = CrossEntropyHead(2, s2.face_cells()[:2], label_smoothing_km=75.0)
    assert torch.isfinite(head.loss(torch.zeros(1, 2), torch.tensor([[0.0, 0.0, 1.0]], dtype=F64)))


@pytest.mark.parametrize("form", FORMS)
def test_the_fused_update_is_that_of_adam(form, narrow_chunks, few_pairs):
    centres, y = places(100), torch.from_numpy(places(8, 1))
    smoothing = LabelSmoothing(centres, {"pairs": 20.0, "whole": 3000.0}[form])
    labels = smoothing.labels(y.numpy(), torch.float32)
    assert isinstance(labels, FORMS[form][1])
    x, w, b = (part.detach() for part in layer(8, 100, torch.float32))
    ours, theirs = torch.nn.Parameter(w.clone()), torch.nn.Parameter(w.clone())
    update = FusedAdam(ours)
    optimiser = torch.optim.Adam([theirs], lr=0.1)
    for _ in range(3):
        update.open_step(0.1)
        cross_entropy_loss(x, ours, b, labels, weight_update=update).backward()
        update.close_step()
        optimiser.zero_grad()
        cross_entropy_loss(x, theirs, b, labels).backward()
        optimiser.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tau_km", [0.0, -1.0, math.inf, math.nan])
def test_a_distance_that_is_none_is_refused(tau_km):
    with pytest.raises(ValueError, match=r"label_smoothing_km is .*positive number of kilometres"):
        LabelSmoothing(places(3), tau_km)


def test_wrong_places_and_shapes_are_named():
    smoothing = LabelSmoothing(places(3), 75.0)
    with pytest.raises(ValueError, match=r"direction 1 is .*not finite"):
        smoothing.labels(np.array([[1.0, 0.0, 0.0], [math.nan, 0.0, 0.0]]), F64)
    labels = smoothing.labels(places(2), torch.float32)
    with pytest.raises(ValueError, match=r"labels are of \(2, 3\) rows and classes, expected \(2, 4\)"):
        cross_entropy_loss(*layer(2, 4, torch.float32), labels)


@pytest.mark.parametrize(
    "options", [{"stage": "head"}, {"stage": "backbone", "polygons": "a", "head": "cross_entropy"}]
)
def test_a_configuration_without_labels_refuses_the_option(options):
    with pytest.raises(UsageError, match=r"label_smoothing_km is 75, but .* has no S2 cells as labels"):
        TrainingConfig(table="a.csv", out="run", label_smoothing_km=75.0, **options)
