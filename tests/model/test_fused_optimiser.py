"""The fused update: torch's Adam bit for bit without a gradient array, moments in half the bytes, what it refuses."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from geo_mvmf import s2, sphere
from geo_mvmf.errors import TrainingError, UsageError
from geo_mvmf.model import checkpoint, fused_optimiser, learner, streaming
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.fused_optimiser import FusedAdam, rounded_at_random
from geo_mvmf.model.heads import CrossEntropyHead, MvmfHead
from geo_mvmf.model.loss import cross_entropy_loss, mvmf_loss
from geo_mvmf.model.output_layer import OutputLayer
from geo_mvmf.model.sources import Batch


@pytest.fixture(autouse=True)
def narrow_chunks(monkeypatch):
    """Chunks of 64 components, and blocks within them, so that small problems have several."""
    monkeypatch.setattr(streaming, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(streaming, "_CHUNK_LIMITS", (64, 64))
    monkeypatch.setattr(fused_optimiser, "_BLOCK", 500)


def layer(c=300, d=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(0.1 * torch.randn(c, d, generator=generator)), nn.Parameter(torch.zeros(c))


def one_loss(weight, bias, step, *, n=8, update=None, kind="mvmf", budget=None):
    """The loss of a batch that is a function of the step, and its features."""
    generator = torch.Generator().manual_seed(100 + step)
    c = len(weight)
    features = torch.randn(n, weight.shape[1], generator=generator, requires_grad=True)
    if kind == "cross_entropy":
        target = torch.randint(c, (n,), generator=generator)
        return cross_entropy_loss(features, weight, bias, target, weight_update=update), features
    mu = torch.from_numpy(sphere.random_directions(c, np.random.default_rng(1)))
    y = torch.from_numpy(sphere.random_directions(n, np.random.default_rng(step)))
    log_kappa = torch.linspace(2.0, 9.0, c, dtype=torch.float64)
    options = {"logit_budget_bytes": budget, "weight_update": update}
    return mvmf_loss(features, weight, bias, mu, log_kappa, y, **options), features


def rate(step):
    return 1e-2 * 0.95**step


def trained(fused, *, steps=50, kind="mvmf", decoupled=False, d=16, make=FusedAdam):
    """Everything that training leaves: weight, bias, moments, and the gradients by the features on the way."""
    weight, bias = layer(d=d)
    options = {"weight_decay": 1e-2, "fused": True}
    optimiser = (torch.optim.AdamW if decoupled else torch.optim.Adam)([bias] if fused else [weight, bias], **options)
    update = make(weight, weight_decay=1e-2, decoupled=decoupled) if fused else None
    seen = []
    for step in range(steps):
        loss, features = one_loss(weight, bias, step, update=update, kind=kind, budget=0 if step % 2 else None)
        optimiser.zero_grad()
        optimiser.param_groups[0]["lr"] = rate(step)
        if update is not None:
            update.open_step(rate(step))
        loss.backward()
        optimiser.step()
        if update is not None:
            update.close_step()
        seen.append(features.grad)
    moments = optimiser.state[weight] if update is None else update.state()
    return [weight.detach(), bias.detach(), moments["exp_avg"], moments["exp_avg_sq"], *seen]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("kind", "d", "decoupled"),
    [("mvmf", 16, True), pytest.param("mvmf", 7, False, marks=pytest.mark.hard), ("cross_entropy", 16, False)],
)
def test_fifty_steps_are_torchs_adam_bit_by_bit(kind, d, decoupled):
    expected, found = (trained(fused, kind=kind, decoupled=decoupled, d=d) for fused in (False, True))
    assert not torch.equal(found[0], layer(d=d)[0])
    assert same(found, expected)


class CountsChunks(FusedAdam):
    """A broken twin: the step is counted once a chunk."""

    def update(self, part, gradient):
        super().update(part, gradient)
        self._before = self._before + 1


class Forgets(FusedAdam):
    """A broken twin: moments begin anew in each step."""

    def begin(self, version):
        super().begin(version)
        for moment in self._moments:
            moment.zero_()


@pytest.mark.parametrize("twin", [CountsChunks, Forgets])
def test_twins_of_the_formula_are_caught(twin):
    assert not same(trained(True, steps=3, make=twin), trained(False, steps=3))


def test_a_twin_that_updates_before_the_features_gradient_is_caught(monkeypatch):
    late, multiply = [], OutputLayer.multiply

    def postponed(self, left, right, out, *, add=False):
        if add:  # the gradient by the features
            late.append((self, left.clone(), right, out))
        else:
            multiply(self, left, right, out)

    class Early(FusedAdam):
        def end(self):
            for each in late:
                multiply(*each, add=True)
            late.clear()
            super().end()

    expected = trained(False, steps=1)
    assert same(trained(True, steps=1), expected)
    monkeypatch.setattr(OutputLayer, "multiply", postponed)
    found = trained(True, steps=1, make=Early)
    assert same(found[:-1], expected[:-1])
    assert not torch.allclose(found[-1], expected[-1])


class Largest(TorchDispatchMode):
    """Size of the largest tensor that any operation made new, not in place and no view."""

    def __init__(self):
        super().__init__()
        self.size, self.known = 0, set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        given = {
            t.untyped_storage().data_ptr() for t in tree_leaves((arguments, options)) if isinstance(t, torch.Tensor)
        }
        made = function(*arguments, **options)
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.size = max(self.size, tensor.numel())
        return made


@pytest.mark.parametrize("moment_type", [None, torch.bfloat16])
def test_nothing_of_the_weights_size_is_made(moment_type):
    weight, bias = layer(c=64 * 40, d=16)
    sizes = {}
    for name, update in (("fused", FusedAdam(weight, moment_type=moment_type)), ("the twin, torch's", None)):
        loss, _ = one_loss(weight, bias, 0, update=update, budget=0)
        with Largest() as largest:
            if update is not None:
                update.open_step(1e-3)
            loss.backward()
        sizes[name] = largest.size
    assert sizes["fused"] < weight.numel() / 10
    assert sizes["the twin, torch's"] >= weight.numel()


@pytest.mark.parametrize("value", [1.2345, -3e-20, 7e30, -0.0, 65536.0])
def test_rounding_at_random_is_right_on_average_and_only_ever_to_a_neighbour(value):
    exact = torch.full((1 << 16,), value)
    noise = torch.arange(1 << 16, dtype=torch.int32)  # all there are
    found = rounded_at_random(exact.clone(), noise)
    assert torch.equal(found, found.bfloat16().float())
    assert float(found.double().mean()) == pytest.approx(float(exact[0]), rel=1e-12)
    assert len(found.unique()) <= 2
    if value == 1.2345:  # the twin: rounding to nearest
        assert float(exact.bfloat16().double().mean()) != pytest.approx(value, rel=1e-4)


def test_rounding_at_random_keeps_what_is_no_number():
    noise = torch.full((3,), 65535, dtype=torch.int32)
    found = rounded_at_random(torch.tensor([torch.inf, -torch.inf, torch.nan]), noise)
    assert found.isposinf().tolist() == [True, False, False]
    assert found.isneginf().tolist() == [False, True, False]
    assert found.isnan().tolist() == [False, False, True]


def last_steps(update, *, loud, quiet):
    """Lengths of the last steps, gradients having become a hundred times smaller."""
    part = slice(0, len(update.weight))
    before = None
    for step in range(loud + quiet):
        if step == loud + quiet - 20:
            before = update.weight.detach().clone()
        update.open_step(1e-3)
        update.begin(step)
        update.update(part, torch.full_like(update.weight, 1.0 if step < loud else 0.01))
        update.end()
        update.close_step()
    return (before - update.weight.detach()) / 20


@pytest.mark.hard
def test_moments_of_half_the_bytes_follow_gradients_that_shrink_and_a_twin_that_rounds_to_nearest_stalls(monkeypatch):
    zeros = torch.zeros(64, 4)
    exact = last_steps(FusedAdam(nn.Parameter(zeros.clone())), loud=300, quiet=2000)
    narrow = last_steps(FusedAdam(nn.Parameter(zeros.clone()), moment_type=torch.bfloat16), loud=300, quiet=2000)
    ratio = narrow / exact
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.03)
    assert float(ratio.std()) < 0.06
    monkeypatch.setattr(fused_optimiser, "rounded_at_random", lambda values, noise: values)
    stalled = last_steps(FusedAdam(nn.Parameter(zeros.clone()), moment_type=torch.bfloat16), loud=300, quiet=2000)
    assert float((stalled / exact).max()) < 0.5


@pytest.mark.hard
def test_moments_of_half_the_bytes_learn_as_well():
    """Final loss on unseen rows, over 200 steps, against float32: the same to a few thousandths of a nat."""
    finals = {}
    for moment_type in (None, torch.bfloat16):
        weight, bias = layer(c=2000, d=32)
        truth = torch.randn(2000, 32, generator=torch.Generator().manual_seed(9))
        update, optimiser = FusedAdam(weight, moment_type=moment_type), torch.optim.Adam([bias], fused=True)
        for step in range(200):
            features = torch.randn(128, 32, generator=torch.Generator().manual_seed(step))
            loss = cross_entropy_loss(features, weight, bias, (features @ truth.T).argmax(1), weight_update=update)
            optimiser.zero_grad()
            update.open_step(1e-2)
            loss.backward()
            optimiser.step()
            update.close_step()
        unseen = torch.randn(4096, 32, generator=torch.Generator().manual_seed(10**6))
        with torch.no_grad():
            finals[moment_type] = float(cross_entropy_loss(unseen, weight, bias, (unseen @ truth.T).argmax(1)))
    assert finals[None] < 5.0  # log 2000 = 7.6
    assert finals[torch.bfloat16] == pytest.approx(finals[None], abs=0.01)


def test_a_second_backward_pass_and_accumulated_gradients_are_refused():
    weight, bias = layer()
    update = FusedAdam(weight)
    first, _ = one_loss(weight, bias, 0, update=update)
    second, _ = one_loss(weight, bias, 1, update=update)
    with pytest.raises(TrainingError, match="outside of a step"):
        first.backward(retain_graph=True)
    update.open_step(1e-3)
    first.backward(retain_graph=True)
    after = weight.detach().clone()
    with pytest.raises(TrainingError, match=r"no retain_graph.*then after 0 steps|then after 0 steps, now 1"):
        first.backward()
    with pytest.raises(TrainingError, match="one a step"):
        second.backward()
    third, _ = one_loss(weight, bias, 2, update=update)
    with pytest.raises(TrainingError, match="outside of a step"):
        third.backward()
    with pytest.raises(TrainingError, match="not closed"):
        update.open_step(1e-3)
    update.close_step()
    assert torch.equal(weight, after)
    update.open_step(1e-3)
    with pytest.raises(TrainingError, match="one a step"):
        (one_loss(weight, bias, 3, update=update)[0] + one_loss(weight, bias, 4, update=update)[0]).backward()


@pytest.mark.parametrize("before", [True, False])
def test_a_weight_that_another_loss_shares_is_refused(before):
    weight, bias = layer()
    update = FusedAdam(weight)
    update.open_step(1e-3)
    if before:
        one_loss(weight, bias, 0)[0].backward()
    one_loss(weight, bias, 1, update=update)[0].backward()
    if not before:
        one_loss(weight, bias, 0)[0].backward()
    with pytest.raises(TrainingError, match="gradient from another loss"):
        update.close_step()


def test_an_update_that_is_not_the_losss_own_is_refused():
    weight, bias = layer()
    with pytest.raises(ValueError, match="another weight"):
        one_loss(weight, bias, 0, update=FusedAdam(layer()[0]))
    update = FusedAdam(weight)
    weight.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        one_loss(weight, bias, 0, update=update)
    with pytest.raises(ValueError, match="contiguous matrix"):
        FusedAdam(nn.Parameter(torch.zeros(3, 2).T))
    with pytest.raises(ValueError, match="float16"):
        FusedAdam(nn.Parameter(torch.zeros(3, 2)), moment_type=torch.float16)
    with pytest.raises(ValueError, match="float64"):
        FusedAdam(nn.Parameter(torch.zeros(3, 2).double()), moment_type=torch.bfloat16)


def test_an_interrupted_backward_pass_is_never_taken_for_a_whole_one():
    class Interrupted(FusedAdam):
        def update(self, part, gradient):
            if part.start:
                raise KeyboardInterrupt
            super().update(part, gradient)

    weight, bias = layer()
    update = Interrupted(weight)
    update.open_step(1e-3)
    with pytest.raises(KeyboardInterrupt):
        one_loss(weight, bias, 0, update=update)[0].backward()
    for step in (update.state, update.close_step, lambda: update.open_step(1e-3), lambda: update.begin(1)):
        with pytest.raises(TrainingError, match="interrupted"):
            step()


def test_a_state_of_another_kind_is_refused():
    weight, _ = layer()
    exact, narrow = FusedAdam(weight), FusedAdam(weight, moment_type=torch.bfloat16)
    with pytest.raises(TrainingError, match="uint8"):
        exact.restore(narrow.state())
    with pytest.raises(TrainingError, match="is needed"):
        exact.restore({})


def config(**options):
    return TrainingConfig(
        stage="head", table="a.csv", out="run", batch_size=8, learning_rate=1e-2, schedule="cosine", steps=12, **options
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_clip": 1.0}, "gradient_clip 1 is impossible"),
        ({"stage": "backbone", "polygons": "a.gpkg"}, "stage backbone"),
    ],
)
def test_what_excludes_it_in_a_configuration(options, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(config(fused_optimiser="float32"), **options)
    dataclasses.replace(config(), **options)


CENTRES = sphere.random_directions(200, np.random.default_rng(5))
FEATURES = torch.randn(64, 12, generator=torch.Generator().manual_seed(3))


def make_learner(options):
    if options.head == "mvmf":
        head = MvmfHead(12, CENTRES, np.full(200, 5.0), train_mean_directions=True, train_log_concentrations=True)
    else:
        head = CrossEntropyHead(12, s2.face_cells())
    targets = torch.from_numpy(sphere.random_directions(64, np.random.default_rng(6)))
    return learner.Learner(options, head, None, targets, 8, 1.0, 12, torch.device("cpu"))


def go_on(model, steps):
    for step in steps:
        rows = np.arange(8) + 8 * (step % 8)
        model.train_step(step, Batch(rows, FEATURES[rows], np.ones(8, dtype=bool)))
    return model


def resumed(options, folder):
    """Five steps, a checkpoint on disk, a new process's learner, seven steps."""
    tensors = go_on(make_learner(options), range(5)).tensors()
    path = checkpoint.write_checkpoint(folder, checkpoint.Checkpoint(5, tensors, {}))
    model = make_learner(options)
    model.restore(checkpoint.read_checkpoint(path).tensors, {})
    return go_on(model, range(5, 12))


@pytest.mark.parametrize("head", ["mvmf", "cross_entropy"])
@pytest.mark.parametrize("kind", ["none", "float32", "bfloat16"])
def test_training_goes_on_from_a_checkpoint_to_the_same_bits(kind, head, tmp_path):
    options = config(fused_optimiser=kind, head=head, ema_decay=0.9, optimiser="adamw", weight_decay=0.1)
    whole = go_on(make_learner(options), range(12)).tensors()
    again = resumed(options, tmp_path).tensors()
    assert whole.keys() == again.keys()
    assert ("fused.exp_avg" in whole) == (kind != "none")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.hard
def test_twins_that_forget_moments_steps_or_seed_at_resuming_are_caught(tmp_path, monkeypatch):
    options = config(fused_optimiser="bfloat16")
    expected = go_on(make_learner(options), range(12)).tensors()["model.head.weight"]
    restore = FusedAdam.restore
    twins = {
        "moments": lambda self, state: setattr(self, "version", int(state["step"])),
        "step": lambda self, state: (restore(self, state), setattr(self, "version", 0)),
        "seed": lambda self, state: (restore(self, state), setattr(self, "_seed", 1)),
    }
    for name, twin in twins.items():
        with monkeypatch.context() as patch:
            patch.setattr(FusedAdam, "restore", twin)
            found = resumed(options, tmp_path).tensors()["model.head.weight"]
        assert not torch.equal(found, expected), name


@pytest.mark.hard
def test_a_training_run_is_that_of_the_plain_optimiser_bit_by_bit():
    each = [go_on(make_learner(config(fused_optimiser=kind)), range(12)) for kind in ("none", "float32", "bfloat16")]
    plain, fused, narrow = (model.tensors() for model in each)
    model = {name for name in plain if name.startswith("model.")}
    assert all(torch.equal(plain[name], fused[name]) for name in model)
    assert not torch.equal(plain["model.head.weight"], narrow["model.head.weight"])
    assert torch.equal(plain["model.head.mean_directions"].norm(dim=1).round(), torch.ones(200).double())
    each[1].finish()
    assert each[1].head.weight_update is None


def test_what_is_no_number_stays_none_when_rounded():
    ones = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)  # NaN as a GPU makes it
    values = torch.cat([ones, torch.tensor([torch.inf, -torch.inf, torch.nan])])
    rounded = fused_optimiser.rounded_at_random(values, torch.full((5,), 65535, dtype=torch.int32))
    assert not rounded.isfinite().any()
