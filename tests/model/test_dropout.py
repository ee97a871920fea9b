"""Masks by hash: the same with kernels and without, in forward and backward."""

import pytest
import torch
from compiled import DTYPES, needs_kernels
from hypothesis import given
from hypothesis import strategies as st

from lmkit import kernels
from lmkit.model.dropout import Masks, dropout, hashed, masked

pytestmark = needs_kernels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (16, 64), (1000, 33)])
@pytest.mark.parametrize("key", [(0, 0), (12345, 2**32 - 1), (2**31, 2**31 - 1)])
@pytest.mark.parametrize("first", [0, 7, 2**31 - 9, 2**32 - 9])
def test_dropout_is_the_same_bit_for_bit_without_kernels(dtype, shape, key, first):
    torch.manual_seed(0)
    tensor = torch.randn(shape, dtype=dtype)
    arguments = (tensor, key, first, round(0.3 * 2**32), 1 / 0.7)
    assert torch.equal(hashed(*arguments), masked(*arguments))


def test_dropout_drops_the_share_it_says_independently_of_key_and_place():
    ones = torch.ones(400, 500)
    torch.manual_seed(0)
    share = torch.stack([dropout(ones, 0.2, training=True) > 0 for _ in range(50)]).float()
    assert abs(float(share.mean()) - 0.8) < 5e-4  # 4 standard errors
    assert float((share.mean(0) - 0.8).std()) == pytest.approx((0.16 / 50) ** 0.5, rel=0.02)
    pairs = (share[:-1] - 0.8) * (share[1:] - 0.8), (share[..., 1:] - 0.8) * (share[..., :-1] - 0.8)
    for products in pairs:
        assert abs(float(products.mean())) < 4 * 0.16 / products.numel() ** 0.5


@pytest.mark.parametrize("choice", ["compiled", "torch"])
def test_dropout_has_the_mask_of_forward_in_backward(choice):
    torch.manual_seed(0)
    tensor = torch.randn(8, 9, requires_grad=True)
    with kernels.use(choice):
        dropped = dropout(tensor, 0.5, training=True)
        (grad,) = torch.autograd.grad(dropped.sum(), [tensor], create_graph=True)
    assert torch.equal(grad != 0, dropped != 0)
    assert torch.equal(grad[grad != 0], torch.full_like(grad[grad != 0], 2.0))
    assert dropout(tensor, 0.5, training=False) is tensor
    assert dropout(tensor, 0.0, training=True) is tensor
    assert not dropout(tensor, 1.0, training=True).any()


def test_dropout_draws_its_key_from_the_generator():
    tensor = torch.ones(100)
    torch.manual_seed(3)
    first, second = (dropout(tensor, 0.5, training=True) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(first, dropout(tensor, 0.5, training=True))
    assert not torch.equal(first, second)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 9), st.integers(1, 40))
def test_masks_are_those_of_all_lanes_cut_to_the_process(world_size, share, time, size):
    num_lanes = world_size * share
    tensor = torch.randn(num_lanes, time, size)

    def twice(first, rows):
        with Masks(5, 2, 9, first, num_lanes).use():
            return torch.stack([dropout(rows, 0.5, training=True) for _ in range(2)])

    whole = twice(0, tensor)
    shares = [
        twice(rank * share, tensor[rank * share :][:share].clone()) for rank in range(world_size)
    ]
    assert torch.equal(torch.cat(shares, dim=1), whole)


def test_masks_differ_by_seed_epoch_window_and_number():
    tensor = torch.ones(1000)
    drawn = []
    for place in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        with Masks(*place).use():
            drawn += [dropout(tensor, 0.5, training=True) for _ in range(2)]
    for number, one in enumerate(drawn):
        for other in drawn[:number]:
            assert 400 < (one != other).sum() < 600


def test_masks_leave_the_default_generator_alone():
    before = torch.get_rng_state()
    with Masks(0, 0, 0).use():
        dropout(torch.ones(10), 0.5, training=True)
    assert torch.equal(torch.get_rng_state(), before)
