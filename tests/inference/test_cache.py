"""The continuous cache against the paper's equations as plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_memory import Text as Tokens
from slow_cache import slow_log_prob, slow_nll
from trained_run import TEST, load, make_run

from lmkit.inference import Cache, Evaluation, Methods, Text, cache, rows
from lmkit.inference.cache import History, mixed, read_with_cache

NONE = float("nan")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return load(make_run(tmp_path_factory.mktemp("outputs")))


def alone(trained, tokens, before=None):
    """The hidden vectors and nll of one text, read from the zero state in one piece; before: the
    token before it."""
    first = trained.tokenizer.eos_id if before is None else before
    inputs = torch.tensor([[first, *tokens[:-1]]])
    with torch.no_grad():
        state = trained.model.initial_state(1)
        output = trained.model(inputs, torch.zeros_like(inputs, dtype=torch.bool), state)
        nll = trained.head.nll(output.hidden, torch.tensor([list(tokens)]))
    return output.hidden[0].double().tolist(), nll[0].double().tolist()


def slow(trained, texts, size, theta):
    """nll and log p_cache of texts that are each read by themselves; of each the token before
    it, and its tokens."""
    nlls, log_probs = [], []
    for before, text in texts:
        hidden, nll = alone(trained, text, before)
        nlls += nll
        log_probs += slow_log_prob(hidden, text, size, theta)
    return nlls, log_probs


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    protocol=st.sampled_from(["document", "sentence", "stream"]),
    num_lanes=st.integers(1, 4),
    positions=st.integers(1, 30),
    products=st.integers(1, 200),
    size=st.integers(1, 9),
    theta=st.sampled_from([0.0, 0.3, 2.0]),
)
def test_it_equals_the_slow_loop(
    trained, lengths, protocol, num_lanes, positions, products, size, theta
):
    """Whatever the lanes, the windows, and what is computed at a time."""
    text = Tokens(lengths)
    pieces = [(None, document.tolist()) for document in text.documents()]
    if protocol == "stream":  # every lane has its own text
        tokens = text.tokens.astype(int)
        lanes = [each.tolist() for each in np.array_split(tokens, num_lanes) if len(each)]
        pieces = [*zip([None, *(lane[-1] for lane in lanes[:-1])], lanes, strict=True)]
    nll, log_probs = slow(trained, pieces, size, theta)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "POSITIONS", positions)
        patch.setattr(cache, "PRODUCTS", products)
        lanes = min(num_lanes, text.num_tokens)
        found = read_with_cache(trained, text, protocol, lanes, size, [theta, 0.1])
    assert found[0] == pytest.approx(np.array(nll), abs=1e-4)
    assert found[1] == pytest.approx(np.array(log_probs), abs=1e-4, nan_ok=True)
    assert mixed(found[0], found[1], 0.2) == pytest.approx(
        np.array(slow_nll(nll, log_probs, 0.2)), abs=1e-4
    )


def test_its_probabilities_add_up_to_1():
    hidden = torch.randn(1, 9, 4)
    targets = torch.randint(5, (1, 9))
    still = torch.zeros(1, 9, dtype=torch.bool)
    total = 0.0
    for word in range(5):
        targets[0, -1] = word
        log_prob = History(6).log_prob(hidden, targets, still, ~still, [0.7])
        total += float(log_prob[0, 0, -1].exp())
    assert total == pytest.approx(1, abs=1e-6)


def test_a_large_product_is_no_overflow():
    hidden = torch.tensor([[[300.0], [300.0], [1.0], [300.0]]])
    targets = torch.tensor([[1, 2, 3, 2]])
    still = torch.zeros(1, 4, dtype=torch.bool)
    found = History(9).log_prob(hidden, targets, still, ~still, [1.0])
    assert float(found[0, 0, -1]) == pytest.approx(math.log(1 / 2), abs=1e-6)


def test_a_document_knows_nothing_of_the_one_before(trained):
    """Bit for bit: the second document is the same, whatever the first is."""
    texts = [Tokens([7, 9]), Tokens([7, 9], seed=1)]
    texts[1].tokens[7:] = texts[0].tokens[7:]
    assert (texts[0].tokens[:7] != texts[1].tokens[:7]).any()
    for lanes in (1, 2):
        one, other = (
            read_with_cache(trained, text, "document", lanes, 50, [0.3])[:, 7:] for text in texts
        )
        assert np.array_equal(one, other, equal_nan=True)
    one, other = (read_with_cache(trained, text, "stream", 1, 50, [0.3])[1, 7:] for text in texts)
    assert not np.array_equal(one, other)


def test_an_empty_cache_leaves_the_model_alone():
    nll, log_prob = np.array([1.0, 2.0, 3.0]), np.array([NONE, -np.inf, 0.0])
    found = mixed(nll, log_prob, 0.25)
    expected = [1.0, 2 - math.log(0.75), -math.log(0.75 * math.exp(-3) + 0.25)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert mixed(nll, log_prob, 0.0) == pytest.approx(nll)


@pytest.mark.parametrize(("lanes", "remembered"), [(1, 2000), (64, 2000), (64, 10**6), (3, 1)])
def test_what_is_computed_at_a_time_is_bounded(lanes, remembered):
    block = cache._block(lanes, remembered)
    assert block == 1 or lanes * block * (remembered + block) <= cache.PRODUCTS
    assert lanes * (block + 2) * (remembered + block + 2) > cache.PRODUCTS


@pytest.mark.parametrize(
    ("vectors", "size", "asked", "expected"),
    [
        (2 * 5, 5, None, 2),
        (1, 5, None, 1),
        (2 * 5, 5, 3, 3),  # what is asked for stays
        (2 * 36, 10**9, None, 2),  # no more is remembered than the text has
    ],
)
def test_fewer_lanes_are_read_where_memory_would_not_do(
    trained, vectors, size, asked, expected, monkeypatch
):
    remembered = vectors * trained.model.hidden_size
    monkeypatch.setattr("lmkit.inference.methods.REMEMBERED", remembered)
    used = []
    loader = trained.loader
    monkeypatch.setattr(trained, "loader", lambda *a: used.append(a[2]) or loader(*a))
    evaluation = Evaluation(trained, "document", num_lanes=asked)
    (row,) = evaluation.measure(Tokens([9, 9, 9, 9]), Methods(cache=Cache(size)))
    assert used == [row["num_lanes"]] == [expected]


def test_the_model_is_unchanged(trained):
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    text = Text.of(TEST, trained.tokenizer)
    (row,) = Evaluation(trained, "document").measure(text, Methods(cache=Cache(5, 0.2, 0.3)))
    assert row["settings"] == {"size": 5, "theta": 0.2, "weight": 0.3}
    after = trained.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    hidden, nll = alone(trained, text.tokens.tolist())
    log_probs = slow_log_prob(hidden, text.tokens.tolist(), 5, 0.2)
    assert row["nll"] == pytest.approx(np.mean(slow_nll(nll, log_probs, 0.3)), abs=1e-5)
