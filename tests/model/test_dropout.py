"""Masks by hash: the same with kernels and without, in forward and backward."""

import math
from itertools import pairwise, product

import pytest
import torch
from compiled import DTYPES, needs_kernels, num_threads
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lmkit import kernels
from lmkit.model import GRU, LSTM, Elman, Window
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
    share = torch.stack([dropout(ones, 0.2, True, 0) > 0 for _ in range(50)]).float()
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
        dropped = dropout(tensor, 0.5, True, 0)
        (grad,) = torch.autograd.grad(dropped.sum(), [tensor], create_graph=True)
    assert torch.equal(grad != 0, dropped != 0)
    assert torch.equal(grad[grad != 0], torch.full_like(grad[grad != 0], 2.0))
    assert dropout(tensor, 0.5, False, 0) is tensor
    assert dropout(tensor, 0.0, True, 0) is tensor
    assert not dropout(tensor, 1.0, True, 0).any()


@pytest.mark.parametrize("choice", ["compiled", "torch"])
@pytest.mark.parametrize("p", [1 - 2.0**-33, 1 - 2.0**-40, math.nextafter(1, 0)])
def test_dropout_of_nearly_everything_leaves_nothing(p, choice):
    """Though p * 2**32 rounds to 2**32, which no 32 bits hold."""
    with kernels.use(choice):
        assert not dropout(torch.ones(1000), p, True, 0).any()


def test_dropout_draws_its_key_from_the_generator():
    tensor = torch.ones(100)
    torch.manual_seed(3)
    first, second = (dropout(tensor, 0.5, True, 0) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(first, dropout(tensor, 0.5, True, 0))
    assert not torch.equal(first, second)


class Card(str):
    """The CPU as a device that names itself otherwise."""

    type = "card"


class OnCard(torch.Tensor):
    """A tensor on the CPU whose masks are drawn as on an accelerator."""

    device = Card("cpu")


@pytest.mark.parametrize("kind", [torch.Tensor, OnCard])
@given(
    *(st.integers(1, 4), st.integers(1, 5), st.integers(1, 9), st.integers(1, 40)),
    st.sampled_from([(), (1,), (2,), (1, 2)]),
)
def test_masks_are_those_of_all_lanes_cut_to_the_process(
    kind, world_size, share, time, size, shared
):
    num_lanes = world_size * share
    tensor = torch.randn(num_lanes, time, size).as_subclass(kind)

    def twice(first, rows):
        with Masks(5, 2, 9, first, num_lanes).use():
            return torch.stack([dropout(rows, 0.5, True, name, shared) for name in (0, "a")])

    whole = twice(0, tensor)
    shares = [
        twice(rank * share, tensor[rank * share :][:share].clone()) for rank in range(world_size)
    ]
    assert torch.equal(torch.cat(shares, dim=1), whole)


def test_masks_differ_by_seed_epoch_window_and_name():
    tensor = torch.ones(1000)
    drawn = []
    for place in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        with Masks(*place).use():
            drawn += [dropout(tensor, 0.5, True, name) for name in (0, 1, "0", "a")]
    for number, one in enumerate(drawn):
        for other in drawn[:number]:
            assert 400 < (one != other).sum() < 600


def test_masks_leave_the_default_generator_alone():
    before = torch.get_rng_state()
    with Masks(0, 0, 0).use():
        dropout(torch.ones(10), 0.5, True, 0)
    assert torch.equal(torch.get_rng_state(), before)


# Of the first masks of seed 3, epoch 1, window 4, before masks had names (commit 3d25b24).
OLD_PLACE = (3, 1, 4)
OLD_KEYS = [
    (3304465307, 837693151),
    (1712338692, 1318984762),
    (2247877960, 3212856415),
    (4285245948, 3643510555),
]


def test_a_mask_is_the_one_that_it_was_before_masks_had_names():
    ones = torch.ones(2, 2, 3)
    with Masks(*OLD_PLACE).use():
        first, second = (dropout(ones, 0.5, True, name).flatten().tolist() for name in (0, 1))
    with Masks(*OLD_PLACE, 2, 6).use():
        later = dropout(ones, 0.5, True, 0).flatten().tolist()
    assert first == [2, 0, 2, 0, 0, 2, 2, 2, 2, 0, 2, 0]
    assert second == [0, 0, 0, 2, 0, 0, 0, 2, 2, 2, 0, 2]
    assert later == [0, 0, 2, 2, 0, 0, 2, 0, 0, 2, 0, 2]


def of_key(shape, p, key):
    """A mask, its scale in it."""
    return masked(torch.ones(shape), key, 0, round(p * 2**32), 1 / (1 - p))


class Through(nn.Module):
    """In the place of a layer: hands on what it is given."""

    def forward(self, inputs, resets, state):
        return inputs, state


def passed(model):
    """What a stack whose weights change nothing makes of ones in training."""
    state = model.initial_state(3)
    model.layers = nn.ModuleList([Through() for _ in model.layers])
    nn.init.ones_(model.embedding.weight)
    tokens = torch.zeros(3, 5, dtype=torch.int64)
    with Masks(*OLD_PLACE).use():
        return model.train()(tokens, tokens > 0, state)


@pytest.mark.parametrize("kind", [LSTM, GRU, Elman])
@pytest.mark.parametrize(
    ("embedding", "between", "output"), list(product((0.0, 0.2), (0.0, 0.4), (0.0, 0.6)))
)
@pytest.mark.parametrize("locked", [False, True])
def test_a_stack_has_the_masks_that_it_had(kind, embedding, between, output, locked):
    """Numbered in the order in which those that leave something out are met; locked, of those."""
    sizes = {"embedding_size": 4, "hidden_size": 4, "num_layers": 3, "locked_dropout": locked}
    model = kind(2, dropout=between, embedding_dropout=embedding, output_dropout=output, **sizes)
    found = passed(model)
    drawn = [p for p in (embedding, between, between, output) if p]
    shape = (3, 1, 4) if locked else (3, 5, 4)
    expected = torch.ones(3, 5, 4)
    for p, key in zip(drawn, OLD_KEYS, strict=False):
        assert torch.equal(found.raw, expected) == (p == output)
        expected = expected * of_key(shape, p, key)
    assert torch.equal(found.hidden, expected)
    assert (found.hidden is found.raw) == (not output)


def test_a_fixed_window_has_the_masks_that_it_had():
    model = Window(2, context=3, embedding_size=4, hidden_size=12, dropout=0.5).train()
    nn.init.ones_(model.embedding.weight)
    nn.init.eye_(model.projection.weight)
    nn.init.zeros_(model.projection.bias)
    tokens = torch.zeros(3, 5, dtype=torch.int64)
    with Masks(*OLD_PLACE).use():
        found = model(tokens, tokens > 0, model.initial_state(3))
    below = of_key((3, 7, 4), 0.5, OLD_KEYS[0])
    below[:, :2] = 0  # before the beginning
    raw = torch.cat([below[:, k : k + 5] for k in range(3)], dim=-1).tanh()
    torch.testing.assert_close(found.raw, raw)
    torch.testing.assert_close(found.hidden, raw * of_key((3, 5, 12), 0.5, OLD_KEYS[1]))


def test_no_two_names_have_the_same_key():
    names = ["", "0", "1", "a", "a" * 9, "ab", "ba", "\0", "\0\0", "é", *range(300), ord("a") << 8]
    assert len({Masks(1, 2, 3).key(name) for name in names}) == len(names)


def test_one_more_dropout_leaves_the_masks_of_the_others():
    model = LSTM(5, embedding_size=4, hidden_size=4, dropout=0.5).train()
    tokens = torch.randint(5, (3, 6))

    def hidden():
        with Masks(1, 2, 3).use():
            return model(tokens, tokens < 0, model.initial_state(3)).hidden

    before = hidden()
    embedding = model.embedding.forward
    model.embedding.forward = lambda tokens: (
        dropout(torch.ones(3), 0.5, True, "more"),
        embedding(tokens),
    )[1]
    assert torch.equal(hidden(), before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [(1,), (2,), (1, 2)])
def test_shared_masks_are_the_same_with_kernels_and_without_and_with_any_threads(dtype, shared):
    tensor = torch.randn(300, 7, 90, dtype=dtype, requires_grad=True)
    found = []
    for choice, threads in (("compiled", 1), ("compiled", 3), ("torch", 1)):
        with kernels.use(choice), num_threads(threads), Masks(1, 2, 3).use():
            dropped = dropout(tensor, 0.3, True, "a", shared)
        (grad,) = torch.autograd.grad(dropped, tensor, torch.ones_like(tensor))
        found.append((dropped, grad))
    for one, other in pairwise(found):
        assert all(map(torch.equal, one, other))
    sizes = [1 if i in shared else size for i, size in enumerate(tensor.shape)]
    ones = torch.ones(sizes, dtype=dtype)
    mask = masked(ones, Masks(1, 2, 3).key("a"), 0, round(0.3 * 2**32), 1 / 0.7)
    assert torch.equal(dropped, tensor * mask)
    assert torch.equal(grad, mask.expand_as(grad))
    assert 0 < (mask == 0).float().mean() < 1


def test_the_gradient_of_a_shared_mask():
    tensor = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    with Masks(1, 2, 3).use():
        torch.autograd.gradcheck(lambda x: dropout(x, 0.5, True, "a", (1,)), tensor)


def test_the_same_units_are_left_out_at_every_position_of_a_window():
    """Not of another lane, nor in another window."""
    model = LSTM(5, embedding_size=40, hidden_size=40, dropout=0.5, locked_dropout=True).train()
    tokens = torch.randint(5, (3, 6))
    dropped = []
    for window in (0, 1):
        with Masks(1, 2, window).use():
            output = model(tokens, tokens < 0, model.initial_state(3))
        zero = output.hidden == 0
        assert torch.equal(zero, zero[:, :1].expand_as(zero))
        torch.testing.assert_close(output.hidden[~zero], 2 * output.raw[~zero])
        dropped.append(zero[:, 0])
    each = torch.cat(dropped)  # (lanes of both windows, units)
    for number, mask in enumerate(each):
        assert 0.2 < float(mask.float().mean()) < 0.8
        assert not any(torch.equal(mask, other) for other in each[:number])
