"""Triton's kernels against float64 and against the eager epilogues; test_triton_epilogues.py says how this is run.

With TRITON_INTERPRET=1 the kernels are run by Triton's interpreter on a CPU, without it on a CUDA device.
"""

import dataclasses
import functools
import importlib.util
import os
import pathlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import geo_mvmf.model
from geo_mvmf.model import epilogue_choice, loss_passes, streaming
from geo_mvmf.model.epilogues import LEAST_SHIFT, Chunk, Eager, Pulls
from geo_mvmf.model.loss import cross_entropy_loss, mvmf_loss
from geo_mvmf.model.output_layer import OutputLayer
from geo_mvmf.model.pair_sums import PairShares

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SOURCE = pathlib.Path(geo_mvmf.model.__file__).with_name("triton_epilogues.py")
N, WIDTH, FIRST = 7, 37, 5  # no multiples of a tile; the chunk is not the layer's first
HALF_A_UNIT = 2**-8  # of the last of bfloat16's eight bits

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of exponentials that overflow


@pytest.fixture(autouse=True)
def rounding_to_nearest(monkeypatch):
    """The interpreter truncates to bfloat16, where devices round to nearest."""
    if DEVICE != "cpu":
        return
    from triton import language
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(values, source, target, mode):
        if (source, target) != (language.float32, language.bfloat16):
            return convert(values, source, target, mode)
        return torch.from_numpy(values.copy()).bfloat16().view(torch.uint16).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


@functools.cache
def kernels():
    return loaded(SOURCE)


def loaded(path):
    """The kernels of a file, in tiles so small that a chunk of 7 x 37 has several each way."""
    spec = importlib.util.spec_from_file_location("kernels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.FORWARD_TILE, module.BACKWARD_TILE = (4, 16), (4, 16)
    return module


def a_layer(product_type=None, bias_level=0.0):
    generator = torch.Generator().manual_seed(0)
    features, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((N, 4), (60, 4), (60,)))
    bias[FIRST + 2] = -torch.inf
    parts = (part.to(DEVICE) for part in (features, 2.0 * weight, bias + bias_level))
    return OutputLayer(*parts, product_type)


def a_chunk(layer, *, shift=None, whole=False, kept=None, narrow=None):
    logits = torch.full((N, WIDTH), torch.nan, device=DEVICE)
    found = torch.full((N,), torch.nan, device=DEVICE) if shift is None else shift
    spare = torch.empty_like(logits) if whole else logits
    kept = torch.empty_like(logits, dtype=kept) if kept == torch.bfloat16 else (logits if kept else None)
    part = slice(FIRST, FIRST + WIDTH)
    return Chunk(part, logits, found, known=shift is not None, whole=whole, spare=spare, kept=kept, narrow=narrow)


def products_of(layer):
    """The chunk's logits without bias, float32: their own rounding is not the epilogues'."""
    out = torch.empty(N, WIDTH, device=DEVICE)
    layer.multiply(layer.features, layer.weight[FIRST : FIRST + WIDTH].T, out)
    return out


def logits_of(layer):
    return products_of(layer).double() + layer.bias[FIRST : FIRST + WIDTH].double()


def shifts():
    return torch.linspace(-3.0, 9.0, N, device=DEVICE)


def bound(layer, relative):
    """What float32 makes of exp(logit - shift), relative to it: two sums are rounded, and exp's argument once more."""
    return 3e-7 + 6e-8 * (logits_of(layer).abs() + 2.0 * relative.abs()).nan_to_num(posinf=0.0)


def within(found, exact, allowed):
    return bool(((found.double() - exact).abs() <= allowed + 1e-30).all())


def check_add_up(module):
    """Every mode of the forward pass: sums to 1e-6 nat, exponentials to what float32 can."""
    layer = a_layer()
    exact = logits_of(layer)
    for shift in (shifts(), None):
        for whole, kept in ((False, None), (False, torch.float32), (False, torch.bfloat16), (True, None)):
            chunk = a_chunk(layer, shift=None if shift is None else shift.clone(), whole=whole, kept=kept)
            gathered = []
            rise = module.TritonEpilogues().add_up(layer, chunk, lambda *given, to=gathered: to.append(copies(given)))
            expected = exact.amax(dim=1).float() if shift is None else shift
            assert torch.equal(chunk.shift, expected)
            relative = exact - expected.double()[:, None]
            assert rise.dtype == torch.float64
            assert within(rise, relative.exp().sum(dim=1).log(), 1e-6)
            check_gathered(layer, gathered, relative if whole else None, chunk)
            if kept == torch.float32:
                assert within(chunk.kept, relative.exp(), bound(layer, relative) * relative.exp())
            if kept == torch.bfloat16:
                assert within(chunk.kept, relative.exp(), (bound(layer, relative) + HALF_A_UNIT) * relative.exp())
            if kept != torch.float32 and not whole:
                assert torch.equal(chunk.logits, products_of(layer))  # nothing is written that is not kept


def copies(given):
    return [None if tensor is None else tensor.clone() for tensor in given]


def check_gathered(layer, gathered, relative, chunk):
    ((logits, shift, bias),) = gathered  # once
    if relative is None:
        assert shift is None
        assert torch.equal(logits, products_of(layer))
        assert torch.equal(bias, layer.bias[chunk.part])
    else:
        assert bias is None
        assert torch.equal(shift, chunk.shift)
        assert within(logits[relative.isfinite()], relative[relative.isfinite()], 4e-6)
        assert torch.equal(logits == -torch.inf, relative == -torch.inf)


def check_extremes(module):
    """Rows of -inf, of inf, of what is no number, and far below or above their shift: as the eager epilogues."""
    features = torch.tensor([[0.0], [torch.nan], [torch.inf], [1e4], [-1e4], [0.0], [1.0]], device=DEVICE)
    weight, bias = torch.ones(60, 1, device=DEVICE), torch.zeros(60, device=DEVICE)
    for level in (0.0, -torch.inf):
        layer = OutputLayer(features, weight, bias + level)
        for shift in (None, shifts(), torch.full((N,), LEAST_SHIFT, device=DEVICE)):
            found = []
            for epilogues in (Eager(), module.TritonEpilogues()):
                chunk = a_chunk(layer, shift=None if shift is None else shift.clone())
                rise = epilogues.add_up(layer, chunk, lambda *_: None)
                found.append(torch.stack([rise, chunk.shift.double()]))
            finite = found[0].isfinite() & (found[0] > -80.0)  # less is a stand-in of the eager one's
            assert within(found[1][finite], found[0][finite], 1e-6 * found[0][finite].abs() + 2e-6)
            lost = ~found[0].isfinite().all(dim=0)
            assert torch.equal(lost, ~found[1].isfinite().all(dim=0))
            assert not torch.isnan(found[1][0, [0, 5, 6]]).any()  # the others spare these


def check_gradient(module):
    """Every mode of the backward pass: to what float32 can, and half a unit of the last bit where that is rounded."""
    for bias_level in (0.0, 120.0):  # exp of this bias alone is infinite
        for product_type in (None, torch.bfloat16):
            layer = a_layer(product_type, bias_level)
            shift, factor = shifts() + bias_level, torch.linspace(0.1, 0.7, N, device=DEVICE)
            relative = logits_of(layer) - shift.double()[:, None]
            for kept in (torch.float32, torch.bfloat16, None, "logits", "again"):
                check_gradient_of(module, layer, shift, factor, relative, kept)


def check_gradient_of(module, layer, shift, factor, relative, kept):
    whole = kept in ("logits", "again")
    narrow = None if layer.product_type is None else torch.empty(N, WIDTH, dtype=layer.product_type, device=DEVICE)
    chunk = a_chunk(layer, shift=shift, whole=whole, narrow=narrow)
    shares = relative.exp()
    if kept == "logits":
        chunk = dataclasses.replace(chunk, formed=True)
        chunk.logits.copy_(relative)
    elif kept in (torch.float32, torch.bfloat16):
        chunk = dataclasses.replace(chunk, kept=shares.to(kept))
        shares = chunk.kept.double()
    scaled = shares * factor.double()[:, None]
    places = torch.tensor([0, 40, 3 * WIDTH + 2, N * WIDTH - 1], device=DEVICE)
    values = (0.999 * scaled.view(-1)[places]).float()  # nearly all of it: what is left shows how it was rounded
    exact = scaled.clone()
    exact.view(-1)[places] -= values.double()
    minus = Pulls(places, values)
    if whole:
        minus = lambda logits, gradient: subtract_checked(relative, places, values, logits, gradient)  # noqa: E731
    found, sums = module.TritonEpilogues().gradient(layer, chunk, factor, minus, sums=True)
    allowed = bound(layer, relative) * scaled
    assert found.dtype == (layer.product_type or torch.float32)
    assert within(found, exact, allowed + (0.0 if narrow is None else HALF_A_UNIT) * exact.abs())
    assert within(sums, exact.sum(dim=0), allowed.sum(dim=0))


def subtract_checked(relative, places, values, logits, gradient):
    assert within(logits.exp(), relative.exp(), 4e-5 * relative.exp())
    gradient.view(-1)[places] -= values


CHECKS = {"add_up": check_add_up, "extremes": check_extremes, "gradient": check_gradient}


@pytest.mark.parametrize("check", CHECKS)
def test_kernels(check):
    CHECKS[check](kernels())


TWINS = {  # what is wrong with it, and which check notices
    "forgets the mask at the edge of a sum of rows": (
        "value = tl.where(inside, value,", "value = tl.where(row_inside[:, None], value,", "add_up"),
    "forgets the mask at the edge of a sum of columns": ("tl.where(inside, value, 0.0)", "value", "gradient"),
    "adds up tiles in their own shifts": (" * (tops - chunk.shift[:, None]).double().exp_()", "", "add_up"),
    "subtracts a shift of another row": ("tl.load(shift + rows, mask=row_inside, other=0.0)\n",
                                         "tl.load(shift + n - 1 - rows, mask=row_inside, other=0.0)\n", "add_up"),
    "leaves -inf to itself": ("tl.maximum(tl.max(value, axis=1), LEAST)", "tl.max(value, axis=1)", "extremes"),
    "takes differences of what is rounded": (
        "minus.places).sub_(minus.values)", "minus.places).bfloat16().sub_(minus.values.bfloat16())", "gradient"),
    "keeps logits where exponentials belong": ("EXPONENTIATE=chunk.kept is None", "EXPONENTIATE=True", "gradient"),
    "writes what nobody keeps": (
        "out, writes = chunk.logits, _NOTHING", "out, writes = chunk.logits, _SHARES", "add_up"),
}  # fmt: skip


@pytest.mark.parametrize("twin", TWINS)
def test_a_broken_twin_is_noticed(twin, tmp_path):
    right, wrong, check = TWINS[twin]
    text = SOURCE.read_text(encoding="utf-8")
    assert text.count(right) == 1
    broken = tmp_path / "broken.py"
    broken.write_text(text.replace(right, wrong), encoding="utf-8")
    with pytest.raises(AssertionError):
        CHECKS[check](loaded(broken))


def a_problem(log_kappa, *, scale=1.0, c=100):
    generator = torch.Generator().manual_seed(3)
    randn = lambda *shape, **how: torch.randn(*shape, generator=generator, **how)  # noqa: E731 (read once)
    mu = torch.nn.functional.normalize(randn(c, 3, dtype=torch.float64))
    features, weight, bias = randn(9, 4), scale * randn(c, 4), randn(c)
    bias[4:60:7] = -torch.inf
    parts = [features, weight, bias, mu, torch.full((c,), log_kappa, dtype=torch.float64)]
    return [part.to(DEVICE).requires_grad_() for part in parts], mu[:9].to(DEVICE)


def found_by(provider, work, tensors):
    with epilogue_choice.using(provider):
        assert epilogue_choice.of(torch.device(DEVICE), torch.float32).name == provider
        loss = work()
        return [loss.detach(), *torch.autograd.grad(loss.sum(), tensors)]


def check_alike(work, tensors, tolerance):
    eager, triton = (found_by(provider, work, tensors) for provider in ("eager", "triton"))
    for one, other in zip(eager, triton, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        one, other = one.nan_to_num(), other.nan_to_num()
        assert (one - other).norm() <= tolerance * one.norm()


MODES = {
    "kept": {},
    "again": {"logit_budget_bytes": 0},
    "partly kept": {"logit_budget_bytes": 9 * 70 * 4},
    "bfloat16": {"kept_type": "bfloat16"},
}


FLIPPED = 1e-3  # of a gradient: the exponential's last bit may decide how it is rounded to bfloat16


@pytest.fixture
def narrow_chunks(monkeypatch):
    """Chunks of 40 components, so that 100 are three, the last one of another width."""
    monkeypatch.setattr(streaming, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(streaming, "ACCELERATOR_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(streaming, "_CHUNK_LIMITS", (40, 40))


def tolerance(mode):
    return FLIPPED if mode == "bfloat16" else 2e-6


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("log_kappa", [3.0, 12.0])  # every component, and pairs
def test_the_loss_is_that_of_the_eager_epilogues(mode, log_kappa, narrow_chunks):
    tensors, y = a_problem(log_kappa)
    check_alike(lambda: mvmf_loss(*tensors, y, reduction="none", **MODES[mode]), tensors, tolerance(mode))


@pytest.mark.parametrize("mode", MODES)
def test_cross_entropy_is_that_of_the_eager_epilogues(mode, narrow_chunks):
    tensors, _ = a_problem(12.0)
    target = torch.arange(50, 59, device=DEVICE)
    check_alike(lambda: cross_entropy_loss(*tensors[:3], target, **MODES[mode]), tensors[:3], tolerance(mode))


@pytest.mark.parametrize("mode", ["kept", "again", "bfloat16"])
@pytest.mark.parametrize("log_kappa", [3.0, 12.0])
def test_products_in_half_precision(mode, log_kappa, narrow_chunks, monkeypatch):
    monkeypatch.setattr(loss_passes, "_product_type", lambda features: torch.bfloat16)
    tensors, y = a_problem(log_kappa)
    check_alike(lambda: mvmf_loss(*tensors, y, **MODES[mode]), tensors, FLIPPED)


@pytest.mark.parametrize("mode", ["kept", "again"])
def test_logits_that_leap(mode, narrow_chunks):
    """By more than exp can hold: a second pass finds the shift of every chunk."""
    tensors, y = a_problem(12.0, scale=40.0)
    with torch.no_grad():
        tensors[2][90] = 300.0
    check_alike(lambda: mvmf_loss(*tensors, y, **MODES[mode]), tensors, 1e-4)  # logits of 300 are rounded to 1.5e-5


def test_a_row_that_is_not_finite_shows_and_spares_the_others(narrow_chunks):
    tensors, y = a_problem(12.0)
    with torch.no_grad():
        tensors[0][3] = torch.nan
    check_alike(lambda: mvmf_loss(*tensors, y, reduction="none"), tensors[:1], 2e-6)


def test_exponentials_formed_again_have_the_same_bits(narrow_chunks):
    tensors, y = a_problem(12.0)
    kept, again = (
        found_by("triton", lambda mode=mode: mvmf_loss(*tensors, y, **MODES[mode]), tensors)
        for mode in ("kept", "again")
    )
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


WAITS = [getattr(torch.ops.aten, name).default for name in ("_local_scalar_dense", "nonzero", "masked_select")]


class Waits(TorchDispatchMode):
    """How often a device would be waited for, because a number or a shape comes from it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        by_mask = function == torch.ops.aten.index.Tensor and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        self.count += function in WAITS or by_mask
        return function(*args, **kwargs or {})


def waits_with(chunk, work, monkeypatch):
    monkeypatch.setattr(streaming, "_CHUNK_LIMITS", (chunk, chunk))
    with epilogue_choice.using("triton"), Waits() as waits:
        work().backward()
    return waits.count


@pytest.mark.skipif(DEVICE != "cpu", reason="the backward pass of a device has a thread of its own")
@pytest.mark.parametrize("mode", ["kept", "again", "bfloat16"])
@pytest.mark.parametrize("log_kappa", [3.0, 12.0])
def test_a_device_is_waited_for_once_a_pass_and_not_once_a_chunk(mode, log_kappa, narrow_chunks, monkeypatch):
    tensors, y = a_problem(log_kappa)
    with torch.no_grad():
        tensors[2].clamp_(min=-5.0)  # rows whose own component is impossible are summed over all, run by run
    few, many = (waits_with(n, lambda: mvmf_loss(*tensors, y, **MODES[mode]), monkeypatch) for n in (50, 10))
    assert few == many <= 16


@pytest.mark.skipif(DEVICE != "cpu", reason="the backward pass of a device has a thread of its own")
def test_a_wait_in_each_chunk_would_be_noticed(narrow_chunks, monkeypatch):
    tensors, _ = a_problem(12.0)
    of_chunk = PairShares.of_chunk
    monkeypatch.setattr(PairShares, "of_chunk", lambda self, *given: (float(given[2].sum()), of_chunk(self, *given))[1])
    target = torch.arange(9, device=DEVICE)
    few, many = (waits_with(n, lambda: cross_entropy_loss(*tensors[:3], target), monkeypatch) for n in (50, 10))
    assert many == few + 8
