"""Backbones: torchvision's networks and nothing but them, from pixels to features."""

import http.client
import pickle
import re
import socket
import urllib.error

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torchvision.models import _api

from geo_mvmf.errors import BadBundleError, BadInputError, UsageError
from geo_mvmf.model import backbones
from geo_mvmf.model.backbones import BackboneConfig, backbone_skeleton, build_backbone, fill, names
from geo_mvmf.model.networks import CHIP_NETWORKS

FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5",
    "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t",
    "vgg11", "vit_b_16", "wide_resnet50_2",
]  # fmt: skip


@pytest.fixture
def pixels():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64)).astype(np.uint8))


def seeded_network(name, seed, **options):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return torchvision.models.get_model(name, weights=None, **options).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_torchvision_loses_its_classifier(name):
    backbone = backbone_skeleton(BackboneConfig(name))
    whole = torchvision.models.get_model_builder(name)
    assert whole is not None
    assert 64 <= backbone.num_features <= 4096
    assert not any(value.shape[:1] == (1000,) for value in backbone.state_dict().values())


@pytest.mark.hard
def test_every_classification_network_of_torchvision_can_be_named():
    known = torchvision.models.list_models(module=torchvision.models)
    assert set(known) | set(CHIP_NETWORKS) == set(names())
    for name in known:
        assert backbone_skeleton(BackboneConfig(name)).num_features >= 64, name


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "regnet_y_400mf", "densenet121"])
def test_features_are_what_torchvisions_own_classifier_sees(name, pixels):
    backbone, reference = build_backbone(name, seed=5), seeded_network(name, 5)
    seen = []
    last = [module for module in reference.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.inference_mode():
        reference(normalise(pixels.float() / 255))
        features = backbone(pixels)
    assert features.shape == (2, backbone.num_features)
    torch.testing.assert_close(features, seen[0], rtol=1e-4, atol=1e-5)


def test_squeezenet_gives_the_average_of_what_its_last_convolution_sees(pixels):
    backbone, reference = build_backbone("squeezenet1_1", seed=5), seeded_network("squeezenet1_1", 5)
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.inference_mode():
        expected = reference.features(normalise(pixels.float() / 255)).mean(dim=(2, 3))
        torch.testing.assert_close(backbone(pixels), expected, rtol=1e-4, atol=1e-5)


def test_inception_is_normalised_as_its_own_transform_input_does():
    """x -> (x - 0.5) / 0.5, by which torchvision replaces the statistics of ImageNet."""
    backbone = backbone_skeleton(BackboneConfig("inception_v3"))
    assert backbone.mean.tolist() == backbone.std.tolist() == [0.5, 0.5, 0.5]
    assert backbone.image_spec.crop == 299


@pytest.mark.parametrize(("name", "width", "stride"), [("chip_resnet10", 8, 1), ("chip_resnet18", 16, 2)])
def test_chip_networks_take_any_small_size(name, width, stride):
    backbone = build_backbone(name, width=width, stem_stride=stride, channels=4)
    for size in (16, 32, 48):
        images = torch.zeros((2, 4, size, size), dtype=torch.uint8)
        assert backbone(images).shape == (2, 8 * width)


def test_pooling_averages_squares_of_the_last_maps(pixels):
    """Four squares instead of one: their mean is what one square holds, and each is the mean of its own quarter."""
    one, four = (build_backbone("chip_resnet10", width=8, pool=pool) for pool in (1, 2))
    quarters = four(pixels).reshape(len(pixels), 8 * 8, 2, 2)
    torch.testing.assert_close(quarters.mean(dim=(2, 3)), one(pixels))
    shape = four.mean.view(1, -1, 1, 1)
    maps = four.network[:-2]((pixels.float() / 255 - shape) / four.std.view(1, -1, 1, 1))
    half = maps.shape[-1] // 2
    torch.testing.assert_close(quarters[:, :, 0, 1], maps[:, :, :half, half:].mean(dim=(2, 3)))


def test_normalised_by_image_a_bands_gain_and_offset_cancel(pixels):
    """A linear law of each band of each image changes nothing; with fixed numbers, the twin, it does."""
    gain, offset = torch.tensor([0.5, 0.8, 1.1])[:, None, None], torch.tensor([0.3, 0.1, -0.05])[:, None, None]
    values = 0.2 + 0.6 * pixels.float() / 255
    by_image, fixed = (
        build_backbone("chip_resnet10", width=8, normalisation=each).eval() for each in ("image", "fixed")
    )
    with torch.inference_mode():
        torch.testing.assert_close(by_image(values * gain + offset), by_image(values), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(by_image(values[1:]), by_image(values)[1:])  # of its batch nothing
        torch.testing.assert_close(by_image(pixels), by_image(pixels.float() / 255), rtol=1e-4, atol=1e-5)
        assert float((fixed(values * gain + offset) - fixed(values)).abs().max()) > 0.05
        plain = by_image(torch.full((1, 3, 32, 32), 77, dtype=torch.uint8))
    assert bool(torch.isfinite(plain).all())
    seen = backbones._normalised(torch.from_numpy(np.random.default_rng(0).random((2, 3, 9, 9))))
    torch.testing.assert_close(seen.mean(dim=(2, 3)), torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(seen.std(dim=(2, 3), correction=0), torch.ones(2, 3, dtype=torch.float64))


def test_weights_know_which_normalisation_they_were_trained_with(tmp_path):
    for own, other in (("fixed", "image"), ("image", "fixed")):
        path = tmp_path / f"{own}.safetensors"
        state = build_backbone("chip_resnet10", width=8, normalisation=own).state_dict()
        safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, path)
        build_backbone("chip_resnet10", width=8, weights=str(path), normalisation=own)
        with pytest.raises(BadInputError, match=f"trained with normalisation '{own}', and '{other}' is asked for"):
            build_backbone("chip_resnet10", width=8, weights=str(path), normalisation=other)


def test_an_embedding_is_a_last_layer_of_so_many_maps(pixels):
    plain, wide = (build_backbone("chip_resnet10", width=8, pool=2, embedding=number) for number in (0, 96))
    assert wide(pixels).shape == (len(pixels), 96 * 4) == (len(pixels), wide.num_features)
    convolution, *others = wide.network[len(plain.network) - 2 : -2]
    assert convolution.weight.shape == (96, 64, 1, 1)
    assert [type(module).__name__ for module in others] == ["BatchNorm2d", "ReLU"]


def test_the_wide_chip_network_is_the_published_resnet_with_a_small_stem():
    """Same tensors, by shape, as torchvision's resnet18 but for the first convolution (7 x 7) and the classifier."""
    own = backbone_skeleton(BackboneConfig("chip_resnet18", width=64)).network.state_dict().values()
    theirs = torchvision.models.resnet18(weights=None)
    theirs.fc = torch.nn.Identity()
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3, bias=False)
    shapes = [sorted(tuple(value.shape) for value in values) for values in (own, theirs.state_dict().values())]
    assert shapes[0] == shapes[1]


def test_bytes_and_floats_mean_the_same(pixels):
    backbone = build_backbone("chip_resnet10", width=8)
    torch.testing.assert_close(backbone(pixels), backbone(pixels.float() / 255))


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    a, b, c = (build_backbone("chip_resnet10", width=8, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["network.0.weight"], c["network.0.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "no_such_net"}, "neither a classification network"),
        ({"name": "fasterrcnn_resnet50_fpn"}, "neither a classification network"),
        ({"name": "resnet18", "width": 32}, "can be chosen for"),
        ({"name": "chip_resnet10", "width": 4}, r"8\.\.256"),
        ({"name": "chip_resnet10", "stem_stride": 3}, "1 or 2"),
        ({"name": "chip_resnet10", "pool": 9}, r"1\.\.8"),
        ({"name": "resnet18", "pool": 2}, "can be chosen for"),
        ({"name": "resnet18", "embedding": 64}, "can be chosen for"),
        ({"name": "chip_resnet10", "embedding": 7}, r"8\.\.4096"),
        ({"name": "resnet18", "normalisation": "batch"}, "'batch'; one of fixed, image"),
        ({"name": "resnet18", "channels": 0}, r"1\.\.64"),
        ({"name": "resnet18", "weights": "IMAGENET1K_V9"}, "IMAGENET1K_V1"),
        ({"name": "chip_resnet10", "weights": "IMAGENET1K_V1"}, "none"),
        ({"name": "resnet18", "weights": "http://example.org/a"}, "neither a \\.safetensors file nor a name"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        build_backbone(**options)


def test_images_of_other_channels_are_refused(pixels):
    with pytest.raises(BadInputError, match="takes 4 channels, the images have 3"):
        build_backbone("chip_resnet10", width=8, channels=4)(pixels)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pkl", ".bin", ".PTH"])
def test_pickled_weights_are_refused_with_the_line_that_converts_them(suffix):
    with pytest.raises(UsageError, match=r"run any program.*safetensors\.torch"):
        build_backbone("resnet18", weights=f"weights{suffix}")


def test_the_line_that_converts_works(tmp_path, monkeypatch):
    with pytest.raises(UsageError) as caught:
        build_backbone("chip_resnet10", weights="weights.pth")
    line = re.search(r'python -c "(.*)"', str(caught.value)).group(1)
    original = build_backbone("chip_resnet10", width=8, seed=9)
    monkeypatch.chdir(tmp_path)
    torch.save(original.state_dict(), "weights.pth")
    exec(line, {})  # noqa: S102  the documented line itself is under test
    converted = build_backbone("chip_resnet10", width=8, weights="weights.safetensors")
    assert all(torch.equal(value, converted.state_dict()[name]) for name, value in original.state_dict().items())


def test_a_pickle_by_the_name_of_safetensors_is_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(BadInputError, match=r"not a valid \.safetensors file"):
        build_backbone("resnet18", weights=str(path))


def test_a_file_of_torchvisions_tensors_is_taken_with_its_classifier_left_out(tmp_path, pixels):
    path = tmp_path / "resnet18.safetensors"
    safetensors.torch.save_file(seeded_network("resnet18", 3).state_dict(), path)
    with torch.inference_mode():
        given, expected = (
            build_backbone("resnet18", weights=str(path))(pixels),
            build_backbone("resnet18", seed=3)(pixels),
        )
    assert torch.equal(given, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("network.0.weight"), r"1 missing \(first: \['network.0.weight'\]\)"),
        (lambda state: state.update(extra=torch.ones(1)), r"1 unknown \(first: \['extra'\]\)"),
        (lambda state: state.update({"network.0.weight": torch.ones(8, 3, 5, 5)}), r"has shape \(8, 3, 5, 5\)"),
        (lambda state: state["network.0.weight"].fill_(float("nan")), "not finite"),
        (lambda state: state.update(mean=torch.ones(3, dtype=torch.int64)), "needs torch.float32"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, message):
    state = {name: value.contiguous() for name, value in build_backbone("chip_resnet10", width=8).state_dict().items()}
    change(state)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    with pytest.raises(BadInputError, match=message):
        build_backbone("chip_resnet10", width=8, weights=str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInputError, match=r"none\.safetensors"):
        build_backbone("resnet18", weights=str(tmp_path / "none.safetensors"))


def test_index_tables_of_a_stranger_are_compared():
    """An index outside its table reads memory of others: only the architecture's own values pass."""
    skeleton = backbone_skeleton(BackboneConfig("swin_t"))
    state = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in skeleton.state_dict().items()}
    with pytest.raises(BadBundleError, match="relative_position_index differs"):
        fill(skeleton, state, where="attack", error=BadBundleError)


def test_other_channels_start_from_the_mean_of_trained_ones(tmp_path):
    path = tmp_path / "resnet18.safetensors"
    state = seeded_network("resnet18", 3).state_dict()
    safetensors.torch.save_file(state, path)
    five = build_backbone("resnet18", weights=str(path), channels=5).network.conv1.weight
    assert five.shape == (64, 5, 7, 7)
    # a grey image means the same: the sum over the channels is kept
    torch.testing.assert_close(five.sum(dim=1), state["conv1.weight"].sum(dim=1))


def test_nothing_is_downloaded_unless_weights_are_asked_for_by_name(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(_api, "load_state_dict_from_url", refuse)
    build_backbone("resnet18")
    with pytest.raises(AssertionError, match="the network was asked"):
        build_backbone("resnet18", weights="IMAGENET1K_V1")


def test_downloads_are_torchvisions_own_with_the_hash_checked(monkeypatch, pixels):
    asked = []

    def load(url, **options):
        asked.append((url, options))
        return seeded_network("resnet18", 3).state_dict()

    monkeypatch.setattr(_api, "load_state_dict_from_url", load)
    with torch.inference_mode():
        features = build_backbone("resnet18", weights="IMAGENET1K_V1")(pixels)
        assert torch.equal(features, build_backbone("resnet18", seed=3)(pixels))
    ((url, options),) = asked
    assert url == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert options["check_hash"] is True
    assert options["weights_only"] is True


def test_auxiliary_classifiers_of_old_networks_are_left_out(monkeypatch):
    state = {
        name: torch.zeros(value.shape, dtype=value.dtype)
        for name, value in torchvision.models.googlenet(weights=None, init_weights=False).state_dict().items()
    }
    assert any(name.startswith("aux1.") for name in state)
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda url, **options: state)
    assert build_backbone("googlenet", weights="IMAGENET1K_V1").num_features == 1024


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), http.client.IncompleteRead(b""), RuntimeError("hash")]
)
def test_a_failed_download_says_what_to_do(monkeypatch, error):
    def fail(url, **options):
        raise error

    monkeypatch.setattr(_api, "load_state_dict_from_url", fail)
    with pytest.raises(BadInputError, match=r"could not be downloaded.*local \.safetensors file"):
        build_backbone("resnet18", weights="IMAGENET1K_V1")
