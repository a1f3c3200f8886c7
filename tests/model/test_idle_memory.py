"""Memory that goes from one large array to the next: never while anybody can still see it."""

import threading

import numpy as np
import pytest
import torch

from geo_mvmf.model import idle_memory

CPU = torch.device("cpu")
LENGTH = idle_memory.LEAST_BYTES  # of float32: four times the least


@pytest.fixture(autouse=True)
def nothing_idle(monkeypatch):
    monkeypatch.setattr(idle_memory, "_idle", {})


def large(length=LENGTH, dtype=torch.float32):
    return idle_memory.empty((length // 64, 64), dtype, CPU)


def test_memory_goes_to_the_next_array_once_nobody_sees_it():
    first = large()
    place = first.data_ptr()
    assert large().data_ptr() != place
    del first
    again = large(LENGTH // 2, torch.float64)
    assert again.data_ptr() == place
    assert (again.dtype, again.shape) == (torch.float64, (LENGTH // 128, 64))


@pytest.mark.parametrize(
    "share",
    [
        lambda tensor: tensor[3:, ::2],
        lambda tensor: tensor.view(torch.int32),
        lambda tensor: tensor.detach(),
        lambda tensor: tensor.numpy(),
        np.from_dlpack,
        lambda tensor: memoryview(tensor.numpy()),
        lambda tensor: tensor.untyped_storage(),
    ],
)
def test_whatever_shares_the_memory_keeps_it(share):
    tensor = large()
    tensor.zero_()
    seen = share(tensor)
    del tensor
    for _ in range(3):
        large().fill_(1.0)
    values = seen if not isinstance(seen, torch.UntypedStorage) else seen[:64]
    assert not np.asarray(values).any()
    del seen, values
    assert idle_memory.idle_bytes() == 2 * 4 * LENGTH


def test_a_twin_that_gives_back_too_early_is_caught():
    tensor = large()
    tensor.zero_()
    for finalizer in list(idle_memory.weakref.finalize._registry):
        if finalizer.peek()[1] is idle_memory._give_back:
            finalizer()
    large().fill_(1.0)
    assert tensor.any()


def test_gradients_that_are_held_are_not_written_over():
    """Autograd takes the array itself for the gradient, and the next backward pass another one while it is held."""

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(_, weight):
            return weight.sum()

        @staticmethod
        def backward(_, gradient):
            return large().fill_(float(gradient))

    weight = torch.zeros(LENGTH // 64, 64, requires_grad=True)
    Sum.apply(weight).backward()
    place, held = weight.grad.data_ptr(), weight.grad
    weight.grad = None
    Sum.apply(2 * weight.detach().requires_grad_()).backward()
    assert held.eq(1.0).all()
    del held
    Sum.apply(weight).backward()
    assert weight.grad.data_ptr() == place


def test_what_is_idle_is_bounded_and_fits(monkeypatch):
    monkeypatch.setattr(idle_memory, "MOST_IDLE_BYTES", 10 * LENGTH)
    held = [large() for _ in range(4)]
    youngest = held[-1].data_ptr()
    while held:
        del held[0]
    assert idle_memory.idle_bytes() == 8 * LENGTH
    assert large().data_ptr() == youngest
    small = idle_memory.empty((LENGTH // 4 + 1,), torch.float32, CPU)  # a quarter: whoever takes it wastes the rest
    assert small.untyped_storage().nbytes() == LENGTH + 4


def test_what_is_too_large_to_wait_sends_nobody_away(monkeypatch):
    first = large()
    place = first.data_ptr()
    del first
    monkeypatch.setattr(idle_memory, "MOST_IDLE_BYTES", 6 * LENGTH)
    larger = large(2 * LENGTH)
    del larger
    assert idle_memory.idle_bytes() == 4 * LENGTH
    assert large().data_ptr() == place


def test_idle_memory_can_be_released():
    kept, gone = large(), large()
    kept.zero_()
    del gone
    idle_memory.release()
    assert idle_memory.idle_bytes() == 0
    assert not kept.any()


def test_small_arrays_and_those_of_other_devices_are_torchs_own():
    small = idle_memory.empty((3, 5), torch.float64, CPU)
    assert (small.shape, small.untyped_storage().resizable()) == ((3, 5), True)
    assert idle_memory.empty((LENGTH,), torch.float32, torch.device("meta")).is_meta
    del small
    assert idle_memory.idle_bytes() == 0


def test_threads_never_share_memory():
    wrong = []

    def work(number):
        for _ in range(200):
            tensor = large(idle_memory.LEAST_BYTES // 4)
            tensor[::512].fill_(number)
            if not tensor[::512].eq(number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
