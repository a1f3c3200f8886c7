"""Augmentation: a pure function of (seed, step, image), and each option does what it says and nothing else."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch

from geo_mvmf.model.augmentation import Augmentation, augment, roamed, uniform

EVERYTHING = Augmentation(
    min_scale=0.5,
    max_aspect=1.3,
    flip=True,
    shift=2.0,
    scale=0.2,
    rotate=10.0,
    brightness=0.1,
    contrast=0.2,
    saturation=0.2,
    gamma=0.3,
    channel_gain=0.1,
    channel_offset=0.05,
    noise=0.02,
)

SIDES = slice(0, 24), slice(25, 49)


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 24, 24)).astype(np.uint8))


def apply(images, options, *, rows=None, step=4, seed=1, size=16):
    rows = np.arange(len(images)) if rows is None else np.asarray(rows)
    return augment(images, options, size=size, seed=seed, step=step, rows=rows.astype(np.int64))


def test_an_image_does_not_depend_on_its_batch(images):
    together = apply(images, EVERYTHING)
    order = [3, 0, 5]
    torch.testing.assert_close(apply(images[order], EVERYTHING, rows=order), together[order], rtol=0, atol=1e-6)
    assert torch.equal(apply(images, EVERYTHING), together)


def test_seed_step_and_row_each_change_it(images):
    base = apply(images, EVERYTHING)
    for other in (
        apply(images, EVERYTHING, step=5),
        apply(images, EVERYTHING, seed=2),
        apply(images, EVERYTHING, rows=np.arange(6) + 1),
    ):
        assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(base, other, strict=True))


def test_the_global_generators_are_neither_read_nor_advanced(images):
    before = torch.get_rng_state()
    first = apply(images, EVERYTHING)
    assert torch.equal(before, torch.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(99)
        assert torch.equal(apply(images, EVERYTHING), first)


def test_nothing_asked_for_is_the_centre_untouched(images):
    result = apply(images, Augmentation())
    assert result.dtype == torch.uint8
    assert torch.equal(result, images[:, :, 4:20, 4:20])


def test_results_stay_pixels(images):
    result = apply(images, EVERYTHING)
    assert result.shape == (6, 3, 16, 16)
    assert 0 <= float(result.min()) <= float(result.max()) <= 1


def test_flip_mirrors_about_half_of_the_images_and_changes_nothing_else(images):
    many = images.repeat(40, 1, 1, 1)
    result = apply(many, Augmentation(flip=True), size=24)
    plain = many.float() / 255
    same = (result - plain).abs().amax(dim=(1, 2, 3)) < 1e-5
    mirrored = (result - plain.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert bool((same ^ mirrored).all())
    assert 90 < int(mirrored.sum()) < 150


def test_a_shift_moves_at_most_so_far_both_ways():
    """A bright column: its centre of mass in the result tells how far it moved."""
    images = torch.zeros((200, 1, 33, 33), dtype=torch.uint8)
    images[:, :, :, 16] = 250
    result = apply(images, Augmentation(shift=3.0), size=33)
    columns = torch.arange(33.0)
    moved = ((result * columns).sum(dim=(1, 2, 3)) / result.sum(dim=(1, 2, 3))) - 16
    assert float(moved.abs().max()) <= 3.001
    assert float(moved.min()) < -2.5
    assert float(moved.max()) > 2.5
    assert abs(float(moved.mean())) < 0.4


def test_a_rotation_keeps_the_centre_and_bounds_the_angle():
    images = torch.zeros((200, 1, 33, 33), dtype=torch.uint8)
    images[:, :, 16, 28] = 250  # 12 pixels east of the centre
    result = apply(images, Augmentation(rotate=20.0), size=33)
    grid = torch.arange(33.0) - 16
    mass = result.sum(dim=(1, 2, 3))
    east, south = (result * grid).sum(dim=(1, 2, 3)) / mass, (result * grid[:, None]).sum(dim=(1, 2, 3)) / mass
    angle = torch.rad2deg(torch.atan2(south, east))
    torch.testing.assert_close(torch.hypot(east, south), torch.full((200,), 12.0), rtol=0, atol=0.4)
    assert 18 < float(angle.abs().max()) < 21


def test_a_zoom_keeps_the_centre_and_both_bounds():
    """Two bright columns: how far they lie from each other is the factor, and their middle stays."""
    images = torch.zeros((300, 1, 49, 49), dtype=torch.uint8)
    images[:, :, :, [16, 32]] = 250
    result = apply(images, Augmentation(scale=0.25), size=49)[:, 0, 24]
    columns = torch.arange(49.0) - 24
    left, right = ((result[:, part] * columns[part]).sum(dim=1) / result[:, part].sum(dim=1) for part in SIDES)
    zoom = (right - left) / 16
    torch.testing.assert_close(left, -right, rtol=0, atol=1e-3)
    assert float(zoom.min()) == pytest.approx(1 / 1.25, abs=0.02)
    assert float(zoom.max()) == pytest.approx(1.25, abs=0.02)
    assert abs(float(zoom.log().mean())) < 0.03  # enlarged as often as reduced
    assert torch.equal(apply(images, Augmentation(scale=1e-12), size=49).round(), (images / 255).round())


def test_gamma_bends_each_image_by_one_power_within_bounds():
    values = torch.linspace(1, 255, 16).to(torch.uint8).expand(400, 3, 16, 16)
    result = apply(values, Augmentation(gamma=0.5))
    power = result.log()[..., :-1] / (values.float() / 255).log()[..., :-1]  # the last value is 1
    one = power[:, :1, :1, :1]
    torch.testing.assert_close(power, one.expand_as(power), rtol=1e-3, atol=1e-4)
    assert float(one.min()) == pytest.approx(1 / 1.5, rel=0.01)
    assert float(one.max()) == pytest.approx(1.5, rel=0.01)
    assert abs(float(one.log().mean())) < 0.03
    assert torch.equal(result[..., -1], torch.ones_like(result[..., -1]))


def test_new_options_draw_their_own_numbers(images):
    """What was drawn before is drawn still: a zoom or a power of nearly one changes nothing else."""
    before = dataclasses.replace(EVERYTHING, scale=0.0, gamma=0.0)
    nearly = dataclasses.replace(EVERYTHING, scale=1e-9, gamma=1e-9)
    torch.testing.assert_close(apply(images, nearly), apply(images, before), rtol=0, atol=1e-5)


def test_a_random_crop_keeps_at_least_the_asked_share():
    """An image that is its own coordinate: the span of values is the span that was cut out."""
    ramp = torch.linspace(0, 250, 64).to(torch.uint8).expand(300, 1, 64, 64)
    result = apply(ramp, Augmentation(min_scale=0.25), size=32)
    span = (result[:, 0, 16, -1] - result[:, 0, 16, 0]) * 255 / 250 * 32 / 31
    assert 0.45 < float(span.min()) < 0.56
    assert 0.9 < float(span.max()) < 1.05


def test_colour_options_change_only_what_they_say(images):
    plain = images.float()[:, :, 4:20, 4:20] / 255
    dull = images // 4 + 96  # far from 0 and 255, so that nothing is cut off
    base = dull.float()[:, :, 4:20, 4:20] / 255
    bright = apply(dull, Augmentation(brightness=0.1)) - base
    assert float(bright.std(dim=(1, 2, 3)).max()) < 1e-5
    assert 0.01 < float(bright.abs().max()) <= 0.1
    contrast = apply(dull, Augmentation(contrast=0.3))
    torch.testing.assert_close(contrast.mean(dim=(1, 2, 3)), base.mean(dim=(1, 2, 3)))
    saturation = apply(dull, Augmentation(saturation=0.5))
    torch.testing.assert_close(saturation.mean(dim=1), base.mean(dim=1))
    gain = apply(dull, Augmentation(channel_gain=0.2)) / base
    torch.testing.assert_close(gain, gain[:, :, :1, :1].expand_as(gain))
    assert float(gain[:, 0, 0, 0].std()) > 0.01
    noise = apply(dull, Augmentation(noise=0.03)) - base
    assert float(noise.std()) == pytest.approx(0.03, rel=0.1)
    assert apply(images, Augmentation(noise=1.0)).max() <= 1.0
    assert plain.shape == noise.shape


def test_uniform_numbers_are_uniform_and_independent():
    rows = np.arange(20_000)
    a, b, c = uniform(0, 3, rows, 1), uniform(0, 3, rows, 2), uniform(0, 4, rows, 1)
    for numbers in (a, b, c):
        counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi squared of 19 degrees of freedom: 99.9 % below 43.8
    assert np.abs(np.corrcoef([a, b, c, np.roll(a, 1)])[np.triu_indices(4, 1)]).max() < 0.03


def test_roaming_cuts_whole_pixels_at_the_stated_place(images):
    options = Augmentation(roam=4)
    offsets = roamed(options, seed=1, step=4, rows=np.arange(6))
    cut = apply(images, options)
    for image, result, (right, down) in zip(images, cut, offsets.tolist(), strict=True):
        expected = image[:, 4 + down : 20 + down, 4 + right : 20 + right]
        assert torch.equal((result * 255).round().to(torch.uint8), expected)


def test_roaming_reaches_every_offset_equally_often():
    rows = np.arange(49_000)
    offsets = roamed(Augmentation(roam=3), seed=0, step=0, rows=rows)
    counts = np.bincount((offsets[:, 0] + 3) * 7 + offsets[:, 1] + 3, minlength=49)
    assert counts.sum() == len(rows)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_roaming_goes_before_other_moves(images):
    """A shift after a roam is the shift of what was cut out."""
    alone, both = Augmentation(roam=4), Augmentation(roam=4, shift=2.0)
    cut = (apply(images, alone) * 255).round().to(torch.uint8)
    torch.testing.assert_close(apply(images, both), apply(cut, Augmentation(shift=2.0)), rtol=0, atol=1e-6)
