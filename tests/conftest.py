"""A small model and small albums, for tests of what stands on them."""

import signal

import numpy as np
import pytest
from PIL import Image

from geo_mvmf.model.bundle import save_bundle
from geo_mvmf.model.untrained import untrained_bundle


def pytest_configure():
    """Hear Ctrl-C also where the shell ran the tests in the background, so that they ignore it: tests send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def bundle():
    """Six components and random weights; pictures of 32 pixels."""
    return untrained_bundle()


@pytest.fixture(scope="session")
def bundle_path(bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_bundle(bundle, path)
    return path


@pytest.fixture
def make_album():
    """Write n pictures of noise into a folder, the same for the same numbers, and give their names."""

    def make(folder, n, first=0):
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"image_{i:03d}.png" for i in range(first, first + n)]
        for i, name in enumerate(names, first):
            noise = np.random.default_rng(i).integers(0, 256, (4, 5, 3), np.uint8)
            Image.fromarray(noise).resize((40, 36)).save(folder / name)
        return names

    return make


@pytest.fixture
def plain_percentiles():
    """The plain bootstrap of images that are independent: the broken twin of intervals over clusters."""

    def interval(values, seed=0, resamples=2000):
        drawn = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
        return np.percentile(np.asarray(values)[drawn].mean(axis=1), [2.5, 97.5])

    return interval
