"""The released model: what goes in comes out, and nothing hostile does anything."""

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image

from geo_mvmf import s2, sphere
from geo_mvmf.errors import BadBundleError, BadInputError, OutputError, UsageError
from geo_mvmf.inputs import images
from geo_mvmf.inputs.images import ImageSpec
from geo_mvmf.model import bundle_format, heads, sealed
from geo_mvmf.model.backbones import build_backbone
from geo_mvmf.model.bundle import choose_device, load_bundle, read_header, save_bundle
from geo_mvmf.model.untrained import untrained_bundle


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "bundle.safetensors"
    save_bundle(untrained_bundle(), path)
    return path


@pytest.fixture
def pixels():
    return np.random.default_rng(3).integers(0, 256, (5, 3, 32, 32)).astype(np.uint8)


def changed(saved, path, *, config=None, arrays=None, metadata=None):
    """The bundle with something replaced, and a right digest."""
    header, found = sealed.read_sealed(saved)
    found = {name: array for name, array in {**found, **(arrays or {})}.items() if array is not None}
    texts = dict(header.metadata)
    texts["config"] = json.dumps({**json.loads(texts["config"]), **(config or {})})
    sealed.write_sealed(path, found, {**texts, **(metadata or {})})
    return path


def test_a_loaded_bundle_predicts_the_same_bits(saved, pixels):
    original = untrained_bundle()
    loaded = load_bundle(saved, device="cpu")
    for expected, got in zip(original.predict(pixels), loaded.predict(pixels), strict=True):
        np.testing.assert_array_equal(expected, got)
    np.testing.assert_array_equal(original.mean_directions, loaded.mean_directions)
    np.testing.assert_array_equal(original.log_concentrations, loaded.log_concentrations)
    np.testing.assert_array_equal(original.training_counts, loaded.training_counts)
    assert (loaded.spec, loaded.metadata, loaded.path) == (original.spec, original.metadata, saved)


def test_how_images_are_normalised_is_in_the_bundle_and_only_where_it_is_not_fixed(saved, pixels, tmp_path):
    """Bundles of before have no such entry, and are read, and written to the same bytes, as ever."""
    assert "normalisation" not in read_header(saved)["backbone"]
    plain = untrained_bundle()
    own = dataclasses.replace(plain, backbone=build_backbone("chip_resnet10", width=8, normalisation="image"))
    save_bundle(own, tmp_path / "own.safetensors")
    assert read_header(tmp_path / "own.safetensors")["backbone"]["normalisation"] == "image"
    loaded = load_bundle(tmp_path / "own.safetensors", device="cpu")
    paler = (60 + pixels // 2).astype(np.uint8)  # another gain and offset, and rounding
    features = loaded.predict(pixels)[1]
    np.testing.assert_array_equal(features, own.predict(pixels)[1])
    assert np.abs(loaded.predict(paler)[1] - features).max() < 0.05 * np.abs(features).max()
    assert own.content_sha256() != plain.content_sha256()


def test_mixing_weights_are_normalised_and_features_have_the_right_shape(saved, pixels):
    log_mixing_weights, features = load_bundle(saved, device="cpu").predict(torch.from_numpy(pixels))
    assert (log_mixing_weights.shape, log_mixing_weights.dtype) == ((5, 6), np.float32)
    assert (features.shape, features.dtype) == ((5, 64), np.float32)
    np.testing.assert_allclose(np.exp(log_mixing_weights).sum(axis=1), 1.0, rtol=1e-5)


def test_the_density_of_a_bundle_is_that_of_its_loss(saved, pixels):
    bundle = load_bundle(saved, device="cpu")
    log_mixing_weights, features = bundle.predict(pixels)
    truth = sphere.random_directions(5, np.random.default_rng(0))
    loss = bundle.head.loss(torch.from_numpy(features), torch.from_numpy(truth), reduction="none").detach().numpy()
    density = bundle.mixture(log_mixing_weights).log_density(truth)
    np.testing.assert_allclose(-np.diag(density), loss, atol=1e-4)


def test_two_savings_give_the_same_bytes(saved, tmp_path):
    save_bundle(untrained_bundle(), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_the_reference_implementation_reads_it(saved):
    with safetensors.safe_open(saved, framework="np") as file:
        assert file.metadata()["format"] == "geo_mvmf bundle"
        assert file.get_tensor("cell_ids").dtype == np.uint64
        np.testing.assert_array_equal(file.get_tensor("cell_ids"), np.sort(s2.face_cells()))


def test_the_baseline_is_a_bundle_too(tmp_path, pixels):
    bundle = untrained_bundle()
    head = heads.CrossEntropyHead(64, bundle.cell_ids)
    path = tmp_path / "planet.safetensors"
    save_bundle(dataclasses.replace(bundle, head=head), path)
    loaded = load_bundle(path, device="cpu")
    mixture = loaded.mixture(loaded.predict(pixels)[0])
    np.testing.assert_array_equal(mixture.of(4)[0], bundle.cell_ids)
    np.testing.assert_allclose(mixture.of(4)[1], np.exp(loaded.predict(pixels)[0][4]), rtol=1e-5)
    with pytest.raises(UsageError, match="PlaNet"):
        _ = loaded.mean_directions


def test_half_precision_halves_the_file_and_hardly_changes_the_result(saved, tmp_path, pixels):
    path = tmp_path / "half.safetensors"
    save_bundle(untrained_bundle(), path, half=True)
    assert path.stat().st_size < 0.6 * saved.stat().st_size
    full, half = load_bundle(saved, device="cpu"), load_bundle(path, device="cpu")
    np.testing.assert_allclose(full.predict(pixels)[0], half.predict(pixels)[0], atol=1e-2)
    assert half.head.weight.dtype == torch.float32


def test_the_header_tells_without_torch(saved):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from geo_mvmf.model.bundle_format import read_header\n"
        "import json; print(json.dumps(read_header(sys.argv[1])))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
    told = json.loads(run.stdout)
    bundle = untrained_bundle()
    weights = sum(value.numel() for value in bundle.backbone.state_dict().values())
    assert told["num_parameters"] == weights + 6 * 65
    assert (told["num_components"], told["backbone"]["name"]) == (6, "chip_resnet10")
    assert told["responsible_use"].startswith("A density over the Earth is a region, not a proof")
    assert told["digest"] == load_bundle(saved, device="cpu").digest == read_header(saved)["digest"]


def test_the_digest_is_that_of_the_specification(saved):
    """docs/bundle_format.md, recomputed with nothing but hashlib."""
    content = saved.read_bytes()
    digest = load_bundle(saved, device="cpu").digest
    assert content.count(digest.encode()) == 1
    assert hashlib.sha256(content.replace(digest.encode(), b"0" * 64)).hexdigest() == digest


def _undetected_flips(saved, path, count, seed):
    content, rng = saved.read_bytes(), np.random.default_rng(seed)
    header = 8 + int.from_bytes(content[:8], "little")
    undetected = 0
    for number in range(count):
        # half of the flips in the header, which is the smaller and the more delicate part
        position = int(rng.integers(0, 8 * header) if number % 2 else rng.integers(8 * header, 8 * len(content)))
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with contextlib.suppress(BadBundleError):
            load_bundle(path, device="cpu")
            undetected += 1
    return undetected


def test_a_flipped_bit_is_detected_wherever_it_is(saved, tmp_path):
    assert _undetected_flips(saved, tmp_path / "flipped.safetensors", 300, seed=0) == 0


@pytest.mark.hard
def test_twenty_thousand_flipped_bits_are_detected(saved, tmp_path):
    assert _undetected_flips(saved, tmp_path / "flipped.safetensors", 20_000, seed=1) == 0


def test_the_flip_test_catches_a_reader_that_does_not_compare(saved, tmp_path, monkeypatch):
    """Broken twin: a digest that is not compared."""

    class Agreeable:
        def __init__(self, raw=b""):
            self.digest = raw[-1:]

        def update(self, part):
            pass

        def hexdigest(self):
            return AnyText()

    class AnyText(str):
        __slots__ = ()

        def __ne__(self, other):
            return False

        __hash__ = str.__hash__

    monkeypatch.setattr(sealed.hashlib, "sha256", Agreeable)
    assert _undetected_flips(saved, tmp_path / "flipped.safetensors", 60, seed=0) > 10


def nan_like(array):
    broken = array.copy()
    broken.flat[0] = np.nan
    return broken


IMAGE = {"resize": 32, "crop": 32, "bands": None, "stretch": None, "ground_km": None, "channels": 3}
BACKBONE = {"name": "chip_resnet10", "channels": 3, "width": 8, "stem_stride": 1, "pool": 1, "embedding": 0}
DEEP = []
for _ in range(50):
    DEEP = [DEEP]

CONFIG_ATTACKS = {
    "a million million components": ({"num_components": 10**12}, "num_components is 1000000000000"),
    "components that are true": ({"num_components": True}, "num_components is True"),
    "other components than there are": ({"num_components": 7}, r"needs F32 or F16 of shape \(7, 64\)"),
    "a million components without bytes": ({"num_components": 10**6}, "the configuration needs"),
    "other features than the backbone's": ({"num_features": 32}, "the configuration needs"),
    "path for a name": ({"backbone": {**BACKBONE, "name": "../../etc/passwd"}}, "not a name"),
    "module for a name": ({"backbone": {**BACKBONE, "name": "os.system"}}, "not a name"),
    "unknown network": ({"backbone": {**BACKBONE, "name": "no_such_net"}}, "neither a classification network"),
    "other network": ({"backbone": {**BACKBONE, "name": "resnet18", "width": 64}}, "has 512"),
    "wider network": ({"backbone": {**BACKBONE, "width": 16}}, "has 128"),
    "network of 10**9 channels": ({"backbone": {**BACKBONE, "channels": 10**9}}, "channels is 1000000000"),
    "embedding of one": ({"backbone": {**BACKBONE, "embedding": 1}}, "embedding 1 must be 0 or"),
    "embedding of 10**9": ({"backbone": {**BACKBONE, "embedding": 10**9}}, "embedding is 1000000000"),
    "normalisation of another kind": ({"backbone": {**BACKBONE, "normalisation": "z"}}, "'z' is not fixed or image"),
    "other channels": ({"backbone": {**BACKBONE, "channels": 4}}, "do not fit backbone"),
    "option of the network": ({"backbone": {**BACKBONE, "weights": "http://x"}}, "unknown entries weights"),
    "head of another kind": ({"head": {"kind": "pickle"}}, "head kind 'pickle'"),
    "head without options": ({"head": {"kind": "mvmf"}}, "does not make a model"),
    "head that is a list": ({"head": []}, "an object is needed"),
    "image of 10**6 pixels": ({"image": {**IMAGE, "crop": 10**6}}, "crop is 1000000"),
    "image of other channels": ({"image": {**IMAGE, "channels": 4}}, "images have 4 channels"),
    "image with a path": ({"image": {**IMAGE, "mask": "/etc/passwd"}}, "unknown entries mask"),
    "deep": ({"training": {"a": DEEP}}, "nested too deeply"),
    "infinite": ({"training": {"a": 1e301}}, "not a finite number"),
    "terminal codes": ({"description": "\x1b[2J"}, "control characters"),
    "long description": ({"description": "x" * 4001}, "at most 4000"),
    "configuration of 70 kB": ({"training": {str(k): "x" * 3000 for k in range(24)}}, "65536 are allowed"),
    "unknown entry": ({"import": "os"}, "unknown entries import"),
}


@pytest.mark.parametrize("name", CONFIG_ATTACKS)
def test_each_broken_rule_of_the_configuration_has_its_error(saved, tmp_path, name):
    config, message = CONFIG_ATTACKS[name]
    path = changed(saved, tmp_path / "attack.safetensors", config=config)
    with pytest.raises(BadBundleError, match=message):
        load_bundle(path, device="cpu")


def test_each_broken_rule_of_the_tensors_has_its_error(saved, tmp_path):
    _, arrays = sealed.read_sealed(saved)
    weight, counter = "backbone.network.0.weight", "backbone.network.1.num_batches_tracked"
    cells, logs = arrays["cell_ids"], arrays["head.log_concentrations"]
    attacks = [
        ({"head.bias": nan_like(arrays["head.bias"])}, "head.bias holds values that are not finite"),
        ({weight: nan_like(arrays[weight])}, "not finite"),
        ({"head.mean_directions": arrays["head.mean_directions"] * 1.001}, "unit vectors are needed"),
        ({"head.log_concentrations": logs + 70.0}, r"log concentration 7\d.* of component \d is beyond \+-60"),
        ({"head.log_concentrations": logs - 70.0}, r"log concentration -6\d.* is beyond \+-60"),
        ({"head.mean_directions": arrays["head.mean_directions"].astype(np.float32)}, "needs F64"),
        ({"head.weight": None}, "head.weight is missing"),
        ({"feature_std": -arrays["feature_std"]}, "negative values"),
        ({"counts": -arrays["counts"]}, "negative values"),
        ({"cell_ids": cells * np.uint64(0)}, "no S2 cell id"),
        ({"cell_ids": cells[[0, 0, 2, 3, 4, 5]]}, "overlap"),
        ({"shell.sh": np.ones(1)}, "does not belong in a bundle"),
        ({"backbone.extra": np.ones(1)}, "do not fit backbone"),
        ({weight: None}, "do not fit backbone"),
        ({weight: arrays[weight][:4].copy()}, "do not fit backbone"),
        ({counter: np.array(1.5)}, "the backbone needs torch.int64"),
        ({counter: np.array(1.5, np.float32)}, "the backbone needs torch.int64"),
    ]
    for number, (replaced, message) in enumerate(attacks):
        path = changed(saved, tmp_path / f"{number}.safetensors", arrays=replaced)
        with pytest.raises(BadBundleError, match=message):
            load_bundle(path, device="cpu")


def test_other_formats_and_versions_are_named(saved, tmp_path):
    for number, (metadata, message) in enumerate(
        [
            ({"format": "geo_mvmf checkpoint"}, "format 'geo_mvmf checkpoint'"),
            ({"format_version": "2"}, "reads version 1"),
            ({"config": "{"}, "not valid JSON"),
            ({"config": "[]"}, "is a list"),
            ({"code": "import os"}, "unknown entries"),
        ]
    ):
        path = changed(saved, tmp_path / f"{number}.safetensors", metadata=metadata)
        for read in (read_header, lambda path: load_bundle(path, device="cpu")):
            with pytest.raises(BadBundleError, match=message):
                read(path)


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path):
    bundle = untrained_bundle()
    with torch.no_grad():
        bundle.head.weight[0, 0] = float("nan")
    with pytest.raises(BadBundleError, match=r"head\.weight holds values that are not finite"):
        save_bundle(bundle, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"ends in \.safetensors"):
        save_bundle(untrained_bundle(), tmp_path / "a.pth")
    assert list(tmp_path.iterdir()) == []


def test_saving_does_not_replace_unasked(saved):
    with pytest.raises(OutputError, match="exists already"):
        save_bundle(untrained_bundle(), saved)


def test_images_of_the_wrong_kind_are_refused(saved):
    bundle = load_bundle(saved, device="cpu")
    for wrong in (np.zeros((3, 32, 32), np.uint8), np.zeros((1, 3, 32, 32), np.float32)):
        with pytest.raises(BadInputError, match="uint8 is needed"):
            bundle.predict(wrong)
    with pytest.raises(BadInputError, match="takes 3 channels, the images have 4"):
        bundle.predict(np.zeros((1, 4, 32, 32), np.uint8))


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:99", "", "CPU"])
def test_unknown_devices_are_named(name):
    with pytest.raises(UsageError, match="device"):
        choose_device(name)


WATCHED = ("pickle.find_class", "socket.", "subprocess.", "os.system", "os.exec", "marshal.load", "urllib.")


def test_loading_and_predicting_touches_neither_network_nor_pickle(saved, pixels, monkeypatch):
    """Row 20 of the acceptance table: no network unless the user asks."""
    seen, watching = [], [True]
    sys.addaudithook(lambda event, args: seen.append(event) if watching and event.startswith(WATCHED) else None)

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    build_backbone("resnet18")
    load_bundle(saved, device="cpu").predict(pixels)
    watching.clear()  # an audit hook cannot be taken away
    assert seen == []


def test_names_and_exif_never_reach_the_network(saved, tmp_path):
    """Row 24: two copies of an image under other names and with other EXIF give the same output."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 50, 3)).astype(np.uint8))
    plain, told = tmp_path / "a.png", tmp_path / "Paris_48.85N_2.35E.png"
    image.save(plain)
    exif = Image.Exif()
    exif[0x010E] = "Paris"
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 0.0), 3: "E", 4: (2.0, 21.0, 0.0)})
    image.save(told, exif=exif)
    os.utime(told, (0, 0))
    bundle = load_bundle(saved, device="cpu")
    first, second = (bundle.predict(images.read_image(path, bundle.spec)[None]) for path in (plain, told))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    # the broken twin: other pixels do change the output
    other = bundle.predict(images.read_image(plain, bundle.spec)[None] // 2)
    assert not np.array_equal(first[0], other[0])


@pytest.mark.hard
def test_loading_needs_at_most_twice_the_file(tmp_path):
    """VmHWM of a child that has loaded another bundle before."""
    path, small = tmp_path / "large.safetensors", tmp_path / "small.safetensors"
    bundle = untrained_bundle(width=96, crop=32)
    save_bundle(untrained_bundle(), small)
    save_bundle(dataclasses.replace(bundle, spec=ImageSpec(resize=32, crop=32)), path)
    code = (
        "import sys\n"
        "from geo_mvmf.model.bundle import load_bundle\n"
        "def peak():\n"
        "    return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) * 1024\n"
        "load_bundle(sys.argv[1], device='cpu')\n"
        "before = peak()\n"
        "load_bundle(sys.argv[2], device='cpu')\n"
        "print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(small), str(path)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    size = path.stat().st_size
    assert size > 20e6
    # the least: threads of the libraries take some MB of their own now and then
    assert min(int(run.stdout) for run in runs) <= 2 * size + 4e6


def test_the_format_page_names_every_tensor_and_limit():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "bundle_format.md").read_text(encoding="utf-8")
    config = {"num_components": 6, "num_features": 2, "head": {"kind": "mvmf"}}
    names = list(bundle_format.expected_tensors(config)) + list(
        bundle_format.expected_tensors({**config, "head": {"kind": "cross_entropy"}})
    )
    for word in [*names, *sealed.DTYPES, str(bundle_format.MAX_CONFIG_BYTES), bundle_format.FORMAT]:
        assert f"`{word}`" in page, word
