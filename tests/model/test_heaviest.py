"""The heaviest mixing weights, streamed, are those of all weights at once."""

import numpy as np
import pytest
import torch

from geo_mvmf.files import weights
from geo_mvmf.model import heaviest as streamed

TAIL = 1e-4


def layer(images=5, components=10_000, features=16, sharpness=8.0, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(components, features, generator=generator, dtype=dtype) * sharpness / features**0.5
    bias = torch.randn(components, generator=generator, dtype=dtype)
    return torch.randn(images, features, generator=generator, dtype=dtype), weight, bias


def exact(x, weight, bias):
    return torch.log_softmax(x.double() @ weight.double().T + bias.double(), dim=1).numpy()


def of(found, image):
    own = slice(found.offsets[image], found.offsets[image + 1])
    return found.component[own], found.log_weight[own]


def check(found, logs, tail=TAIL):
    """All but the tail is there, heaviest first, with the weights that a float64 softmax gives."""
    for image, row in enumerate(logs):
        component, log_weight = of(found, image)
        assert np.all(np.diff(component.astype(np.int64)) > 0)
        rounding = 1e-5 + 3e-7 * np.abs(row[np.isfinite(row)]).max()  # of float32 logits
        np.testing.assert_allclose(log_weight, row[component], atol=rounding)
        left = np.delete(row, component)
        assert np.exp(left).sum() <= tail * 1.01
        assert not left.size or left.max() <= row[component].min() + rounding


@pytest.mark.parametrize("sharpness", [0.1, 3.0, 8.0, 100.0])
def test_nothing_heavy_is_missed_however_sharp_the_images_are(sharpness):
    x, weight, bias = layer(sharpness=sharpness)
    check(streamed.heaviest(x, weight, bias, TAIL), exact(x, weight, bias))


def test_sizes_that_no_block_or_group_divides(monkeypatch):
    monkeypatch.setattr(streamed, "_BLOCK", 192)
    for components in (1, 63, 64, 191, 192, 193, 1000):
        x, weight, bias = layer(components=components)
        check(streamed.heaviest(x, weight, bias, TAIL), exact(x, weight, bias))


def test_what_is_kept_in_the_end_is_what_all_weights_would_keep():
    x, weight, bias = (each.double() for each in layer(dtype=torch.float64))
    found, logs = streamed.heaviest(x, weight, bias, TAIL), exact(x, weight, bias)
    kept = weights.prune_heaviest(found.component, found.log_weight, found.offsets)
    whole = weights.prune(logs, is_softmax=True)
    assert np.abs(np.diff(kept.offsets) - np.diff(whole.offsets)).max() <= 1  # float32 weights at the cut
    np.testing.assert_allclose(kept.residual, whole.residual, atol=1e-6)
    fewer = weights.prune_heaviest(whole.component, whole.log_weight, whole.offsets, tail=0.01)
    assert np.all(np.diff(fewer.offsets) < np.diff(whole.offsets))


def test_an_image_has_the_same_weights_in_any_company():
    x, weight, bias = layer(images=40)
    together = streamed.heaviest(x, weight, bias, TAIL)
    for image in (0, 7, 39):
        alone = streamed.heaviest(x[image : image + 1], weight, bias, TAIL)
        component, log_weight = of(together, image)
        assert np.array_equal(alone.component, component)
        np.testing.assert_allclose(alone.log_weight, log_weight, atol=1e-5)


def test_a_sample_that_misleads_costs_time_and_no_component(monkeypatch):
    """The sampled components say that nothing else counts: the others hold a hundredth, and are found all the same."""
    components = 20_000
    number = streamed._SAMPLED
    sampled = np.arange(number) * (components - 1) // (number - 1)
    bias = torch.full((components,), 5.0)
    bias[sampled] = -60.0
    bias[sampled[7]], bias[sampled[9]] = 20.0, 6.0  # above which alone, by the sample, something counts
    x, weight = torch.zeros(2, 3), torch.zeros(components, 3)
    check(found := streamed.heaviest(x, weight, bias, TAIL), exact(x, weight, bias))
    assert np.diff(found.offsets).min() > components - number
    monkeypatch.setattr(streamed._Noted, "missed", lambda *_: np.empty(0, np.int64))  # the broken twin: not looked at
    with pytest.raises(AssertionError):
        check(streamed.heaviest(x, weight, bias, TAIL), exact(x, weight, bias))


def test_flat_images_are_done_a_few_at_a_time(monkeypatch):
    x, weight, bias = layer(images=9, components=2000, sharpness=0.1)
    at_once = streamed.heaviest(x, weight, bias, TAIL)
    seen, plain = [], streamed._noted
    monkeypatch.setattr(streamed, "_noted", lambda some, *rest: seen.append(len(some.features)) or plain(some, *rest))
    monkeypatch.setattr(streamed, "_MOST_NOTED", 5000)
    few = streamed.heaviest(x, weight, bias, TAIL)
    assert max(seen[1:]) < 9
    assert min(seen) <= 2
    assert np.array_equal(few.component, at_once.component)
    assert np.array_equal(few.offsets, at_once.offsets)


def test_what_is_no_number_costs_its_own_image():
    x, weight, bias = layer()
    good = exact(x, weight, bias)
    x[1, 0], x[3, 2] = torch.nan, torch.inf
    found = streamed.heaviest(x, weight, bias, TAIL)
    assert found.is_finite.tolist() == [True, False, True, False, True]
    assert np.diff(found.offsets)[[1, 3]].tolist() == [0, 0]
    for image in (0, 2, 4):
        component, log_weight = of(found, image)
        np.testing.assert_allclose(log_weight, good[image][component], atol=2e-5)


def test_components_that_are_ruled_out_are_never_there():
    x, weight, bias = layer(components=300)
    bias[:200] = -torch.inf
    check(found := streamed.heaviest(x, weight, bias, TAIL), exact(x, weight, bias))
    assert found.component.min() >= 200


def test_more_images_than_their_numbers_can_tell_are_refused():
    with pytest.raises(ValueError, match="features of 16385 images; at most 16384"):
        streamed.heaviest(torch.zeros(16385, 1), torch.zeros(2, 1), torch.zeros(2), TAIL)


@pytest.mark.parametrize("level", [-1e31, -1e29, 1e20, -1e20, 1e7])
def test_logits_beyond_all_measure_cost_their_own_image(level):
    """Too small or too large for float32 to tell them apart: an image has entries, or it is said to have no weights."""
    features = torch.tensor([[0.0], [1.0]])
    found = streamed.heaviest(features, torch.full((5000, 1), level), torch.zeros(5000), 1e-4)
    counts = np.diff(found.offsets)
    assert found.is_finite.tolist() == (counts > 0).tolist()
    assert counts[0] == 5000  # the other, all of whose weights are equal
