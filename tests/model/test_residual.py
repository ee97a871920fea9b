"""Residual blocks: their masks, their beginnings, and what they refuse."""

import pytest
import torch

from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.errors import UserError
from lmkit.model import GRU, LSTM, LSTMP, Elman, Masks
from lmkit.model.dropout import masked

PLACE = (3, 1, 4)  # seed, epoch, window


def mask(shape, p, name):
    key = Masks(*PLACE).key(name)
    return masked(torch.ones(shape), key, 0, round(p * 2**32), 1 / (1 - p))


def build(kind=LSTM, **settings):
    torch.manual_seed(3)
    settings = {"embedding_size": 6, "hidden_size": 6, "residual": "rms_norm", **settings}
    return kind(11, **settings)


@pytest.mark.parametrize("locked", [False, True])
def test_a_branch_is_dropped_and_the_stream_is_not(locked):
    """Embedding and outputs have the masks that they have without blocks."""
    settings = {"dropout": 0.4, "embedding_dropout": 0.2, "output_dropout": 0.6}
    model = build(num_layers=3, expansion=2, locked_dropout=locked, **settings).train()
    tokens = torch.randint(11, (4, 5))
    resets = tokens < 0
    with Masks(*PLACE).use():
        found = model(tokens, resets, model.initial_state(4))
    shape = (4, 1, 6) if locked else (4, 5, 6)
    x = model.embedding.weight[tokens] * mask(shape, 0.2, 0)
    for number, block in enumerate(model.layers):
        branch, _ = block.cell(block.norm(x), resets, block.initial_state(4))
        x = x + branch * mask(shape, 0.4, f"layers.{number}.cell")
        branch = block.down(torch.nn.functional.gelu(block.up(block.inner_norm(x))))
        x = x + branch * mask(shape, 0.4, f"layers.{number}.expansion")
    raw = model.layers[-1].final_norm(x)
    torch.testing.assert_close(found.raw, raw, atol=1e-6, rtol=1e-5)
    expected = raw * mask(shape, 0.6, 1)
    torch.testing.assert_close(found.hidden, expected, atol=1e-6, rtol=1e-5)


def test_a_block_projects_inputs_of_another_size():
    model = build(GRU, hidden_sizes=[6, 9, 9, 4])
    projections = [block.projection for block in model.layers]
    shapes = [None if each is None else tuple(each.weight.shape) for each in projections]
    assert shapes == [None, (9, 6), None, (4, 9)]
    assert all(cell.weight_ih.shape[1] == cell.hidden_size for cell in model.cells)
    model = build(LSTMP, hidden_size=20, projection_size=8, tie_weights=True, num_layers=3)
    assert [block.hidden_size for block in model.layers] == [8, 8, 6]
    assert [cell.num_units for cell in model.cells] == [20, 20, 20]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("num_layers", [1, 8])
def test_branches_begin_smaller_the_more_there_are_and_tied_outputs_with_a_length_of_1(
    num_layers, tied
):
    sizes = {"embedding_size": 64, "hidden_size": 64, "num_layers": num_layers}
    model = build(expansion=4, tie_weights=tied, **sizes)
    for block in model.layers:
        for parameter, rel in ((block.down.weight, 0.05), (block.down.bias, 0.3)):
            std = (3 * 256 * 2 * num_layers) ** -0.5
            assert parameter.std().item() == pytest.approx(std, rel=rel)
    tokens = torch.randint(11, (4, 5))
    raw = model(tokens, tokens < 0, model.initial_state(4)).raw
    assert raw.norm(dim=-1).flatten().tolist() == pytest.approx(
        [1.0 if tied else 8.0] * 20, rel=1e-3
    )
    assert [block.final_norm is not None for block in model.layers] == [
        number == num_layers - 1 for number in range(num_layers)
    ]


def test_a_feed_forward_layer_has_at_least_one_unit():
    assert [len(block.up.weight) for block in build(expansion=0.01).layers] == [1, 1]


def test_a_sigmoid_cell_reads_normalised_inputs_from_the_first_layer_on():
    settings = {"nonlinearity": "sigmoid", "num_layers": 2}
    first, second = build(Elman, **settings).cells
    plain = build(Elman, residual=None, **settings).cells
    bounds = [cell.weight_ih.abs().max().item() * 6**0.5 for cell in (first, second, *plain)]
    assert bounds == pytest.approx([2, 2, 2, 4], rel=0.2)


def test_an_expansion_without_blocks_is_refused():
    with pytest.raises(UserError) as refused:
        check(compose(["name=a", "model.expansion=2"]))
    assert str(refused.value).partition("\n  ")[2] == (
        "model.expansion=2 but model.residual=null: the feed-forward layers are a part of residual "
        "blocks; set model.residual=rms_norm or model.expansion=0"
    )


@pytest.mark.parametrize("rank", [90, 80])
def test_a_rank_that_saves_nothing_is_refused(rank):
    sizes = [f"model.rank={rank}", "model.embedding_size=80"]
    with pytest.raises(UserError) as refused:
        check(compose(["name=a", "model=mogrifier", *sizes]))
    assert str(refused.value).partition("\n  ")[2] == (
        f"model.rank={rank} but the smallest size is 80: factors save nothing from there on; "
        "set a rank below it, or model.rank=0 for whole matrices"
    )
    check(compose(["name=a", "model=mogrifier", "model.rank=200", "model.rounds=0"]))
