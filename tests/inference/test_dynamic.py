"""Dynamic evaluation against the paper's update as plain loops over a model of their own."""

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compiled import needs_kernels
from hypothesis import given
from hypothesis import strategies as st
from in_memory import Text as Tokens
from slow_cache import slow_log_prob
from trained_run import TEST, TRAIN, make_run

from lmkit.errors import UserError
from lmkit.inference import Cache, Dynamic, Evaluation, Methods, Text, TrainedModel, dynamic
from lmkit.inference.dynamic import Stretch, read_dynamically, root_mean_squares, stretches

MODELS = ["lstm", "gru", "tanh", "window"]  # lstm is tied, the others are not
KERNELS = ["torch", pytest.param("compiled", marks=needs_kernels)]
SETTINGS = [
    Dynamic("sgd", lr=0.3, segment=3),
    Dynamic("sgd", lr=0.1, decay=0.05, segment=4),
    Dynamic("rms", lr=1e-3, decay=0.01, epsilon=1e-2, segment=5),
    # Of some weights more than 1, which is clipped.
    Dynamic("rms", lr=1e-3, decay=0.9, epsilon=1e-2, segment=2),
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


def loaded(outputs, kind="lstm", kernels="torch"):
    run = make_run(outputs, kind)
    return TrainedModel.load(run, {**run.config(), "kernels": kernels})


def weights_of(trained):
    module = torch.nn.ModuleDict({"model": trained.model, "head": trained.head})
    return dict(module.named_parameters())


def read(trained, inputs, targets, resets, state):
    """The hidden vectors and nll of some positions, and the state after them."""
    output = trained.model(torch.tensor(inputs), torch.tensor(resets), state)
    logits = output.hidden @ trained.head.weight.T + trained.head.bias
    nll = F.cross_entropy(
        logits.flatten(0, 1), torch.tensor(targets).flatten(), reduction="none"
    ).view(len(targets), -1)
    after = tuple(tuple(part.detach() for part in layer) for layer in output.state)
    return output.hidden.detach(), nll, after


def slow_dynamic(trained, texts, settings, rms):
    """The nll of each token and the hidden vector that it was predicted from; `trained` learns."""
    weights = weights_of(trained)
    first = {name: weight.detach().clone() for name, weight in weights.items()}
    nlls, hiddens = [], []
    for text in texts:
        for name, weight in weights.items():
            weight.data = first[name].clone()
        inputs = [trained.tokenizer.eos_id, *text[:-1]]
        state = trained.model.initial_state(1)
        for begin in range(0, len(text), settings.segment):
            now = slice(begin, begin + settings.segment)
            targets = [text[now]]
            still = [[False] * len(targets[0])]
            hidden, nll, state = read(trained, [inputs[now]], targets, still, state)
            nlls += nll[0].tolist()
            hiddens += hidden[0].tolist()
            for weight in weights.values():
                weight.grad = None
            nll.mean().backward()
            for name, weight in weights.items():
                if weight.grad is not None:
                    step(weight, first[name], settings, rms.get(name), mean_of(rms))
    return nlls, hiddens


def mean_of(rms):
    return np.mean([each.mean().item() for each in rms.values()]) if rms else None


def step(weight, first, settings, rms, mean):
    gradient = weight.grad.to_dense() if weight.grad.is_sparse else weight.grad
    back = first - weight.data
    if settings.rule == "sgd":
        decay = settings.decay or 0.0
        weight.data = weight.data - settings.lr * gradient + decay * back
        return
    relative = rms / mean
    relative[relative > 1 / settings.decay] = 1 / settings.decay
    normalised = gradient / (rms + settings.epsilon)
    weight.data = weight.data - settings.lr * normalised + settings.decay * relative * back


def slow_rms(trained, lanes, segment):
    """RMS_g over lanes of (inputs, targets, resets), the longest first, -1 for no target."""
    weights = weights_of(trained)
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    count, state = 0, trained.model.initial_state(len(lanes))
    for begin in range(0, len(lanes[0][0]), segment):
        going = [lane for lane in lanes if len(lane[0]) > begin]
        time = len(lanes[0][0][begin : begin + segment])
        columns = []
        for column, padding in ((0, 0), (1, -1), (2, False)):
            some = [lane[column][begin : begin + segment] for lane in going]
            columns.append([each + [padding] * (time - len(each)) for each in some])
        inputs, targets, resets = columns
        state = tuple(tuple(part[: len(going)] for part in layer) for layer in state)
        there = torch.tensor(targets) >= 0
        _, nll, state = read(
            trained, inputs, torch.tensor(targets).clamp(0).tolist(), resets, state
        )
        if not there.any():
            continue
        for weight in weights.values():
            weight.grad = None
        nll[there].mean().backward()
        number = int(there.sum())
        count += number
        for name, weight in weights.items():
            if weight.grad is not None:
                squares[name] += number * weight.grad.to_dense() ** 2
    return {name: (each / count).sqrt() for name, each in squares.items()}


def as_lanes(tokens, eos_id, num_lanes):
    """The lanes of a stream as `slow_rms` takes them."""
    parts = [part.tolist() for part in np.array_split(tokens, num_lanes)]
    firsts = [eos_id, *(part[-1] for part in parts[:-1])]
    return [
        ([first, *part[:-1]], part, [False] * len(part))
        for first, part in zip(firsts, parts, strict=True)
    ]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_root_mean_squares_equal_the_slow_loop(outputs, kind, kernels, monkeypatch):
    monkeypatch.setattr(dynamic, "NUM_LANES", 3)
    trained = loaded(outputs, kind, kernels)
    text = Text.of(TRAIN, trained.tokenizer)
    found = root_mean_squares(trained, text, "stream", Dynamic(segment=4))
    lanes = as_lanes(text.tokens.astype(int), trained.tokenizer.eos_id, 3)
    expected = slow_rms(loaded(outputs, kind), lanes, 4)
    assert found.keys() == expected.keys()
    for name, each in found.items():
        assert torch.allclose(each, expected[name], rtol=1e-3, atol=1e-6), name
    few = root_mean_squares(trained, text, "stream", Dynamic(segment=4, windows=2))
    expected = slow_rms(loaded(outputs, kind), [tuple(c[:8] for c in lane) for lane in lanes], 4)
    for name, each in few.items():
        assert torch.allclose(each, expected[name], rtol=1e-3, atol=1e-6), name


def document_lanes(text, eos_id, num_lanes):
    """One lane of all documents, or a lane for each of them, as `slow_rms` takes them."""
    lanes = [
        ([eos_id, eos_id, *each[:-1]], [-1, *each], [True, *[False] * len(each)])
        for each in (document.tolist() for document in text.documents())
    ]
    assert num_lanes in (1, len(lanes))
    return lanes if num_lanes > 1 else [tuple(map(sum, zip(*lanes, strict=True), [[]] * 3))]


@pytest.mark.parametrize("kind", ["lstm", "window"])
@pytest.mark.parametrize(
    ("lengths", "num_lanes", "segment", "windows"),
    [
        ([9, 5], 2, 4, None),
        ([9, 5, 3], 1, 2, None),
        ([9, 5, 3], 1, 1, None),  # some windows have a reset alone
        ([4, 4], 2, 1, None),
        ([4, 4], 2, 1, 1),
    ],
)
def test_the_root_mean_squares_of_documents_begin_each_from_zero(
    outputs, lengths, num_lanes, segment, windows, kind, monkeypatch
):
    monkeypatch.setattr(dynamic, "NUM_LANES", num_lanes)
    trained = loaded(outputs, kind)
    text = Tokens(lengths)
    settings = Dynamic(segment=segment, windows=windows)
    found = root_mean_squares(trained, text, "document", settings)
    lanes = document_lanes(text, trained.tokenizer.eos_id, num_lanes)
    if windows:  # the first of them is after the reset
        lanes = [tuple(column[: 1 + windows * segment] for column in lane) for lane in lanes]
    expected = slow_rms(loaded(outputs, kind), lanes, segment)
    for name, each in found.items():
        assert torch.allclose(each, expected[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize(("num_tokens", "num_lanes"), [(3, 1), (4, 1), (11, 2), (40, 7)])
def test_no_lane_is_shorter_than_a_segment(outputs, num_tokens, num_lanes, monkeypatch):
    monkeypatch.setattr(dynamic, "NUM_LANES", 7)
    trained, text = loaded(outputs), Tokens([num_tokens])
    found = root_mean_squares(trained, text, "stream", Dynamic(segment=4))
    lanes = as_lanes(text.tokens.astype(int), trained.tokenizer.eos_id, num_lanes)
    expected = slow_rms(loaded(outputs), lanes, 4)
    for name, each in found.items():
        assert torch.allclose(each, expected[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_it_equals_the_slow_loop(outputs, kind, settings, kernels, monkeypatch):
    monkeypatch.setattr(dynamic, "UPDATED", 50)  # weights are updated in pieces
    trained, twin = loaded(outputs, kind, kernels), loaded(outputs, kind)
    if kernels == "torch":  # the compiled ones have no float64
        for each in (trained, twin):
            each.model.double()
            each.head.double()
    exact = {"abs": 1e-5 if kernels == "torch" else 3e-4}
    train, text = Text.of(TRAIN, trained.tokenizer), Text.of(TEST, trained.tokenizer)
    rms = {}
    if settings.rule == "rms":
        rms = root_mean_squares(trained, train, "stream", settings)
    rows = read_dynamically(trained, text, "stream", settings, rms, cache_size=6, thetas=[0.0, 0.2])
    tokens = text.tokens.tolist()
    nll, hidden = slow_dynamic(twin, [tokens], settings, rms)
    assert rows[0] == pytest.approx(np.array(nll), **exact)
    for row, theta in zip(rows[1:], (0.0, 0.2), strict=True):
        expected = np.array(slow_log_prob(hidden, tokens, 6, theta))
        assert row == pytest.approx(expected, **exact, nan_ok=True)
    still = read_dynamically(trained, text, "stream", Dynamic("sgd", lr=1e-12), {})[0]
    assert np.abs(rows[0] - still).max() > 0.01  # it has learnt something


@pytest.mark.parametrize("protocol", ["document", "sentence"])
def test_a_reset_goes_back_to_the_trained_weights(outputs, protocol):
    """Bit for bit, a document is read as if it were alone, whatever the one before is."""
    trained, settings = loaded(outputs), Dynamic("sgd", lr=0.3, segment=4)
    texts = [Tokens([7, 9, 1]), Tokens([7, 9, 1], seed=1)]
    texts[1].tokens[7:] = texts[0].tokens[7:]
    one, other = (
        read_dynamically(trained, text, protocol, settings, {}, cache_size=9, thetas=[0.1])
        for text in texts
    )
    assert np.array_equal(one[:, 7:], other[:, 7:], equal_nan=True)
    assert not np.array_equal(one[0, :7], other[0, :7])
    expected, _ = slow_dynamic(
        loaded(outputs),
        [each.tokens.tolist() for each in stretches(texts[0], protocol)],
        settings,
        {},
    )
    assert one[0] == pytest.approx(np.array(expected), abs=1e-4)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
def test_a_stretch_has_the_ends_of_its_tokens(lengths, data):
    text = Tokens(lengths)
    more = data.draw(st.sets(st.integers(1, text.num_tokens)))
    text.line_ends = np.array(sorted({*text.document_ends.tolist(), *more}))
    begin = data.draw(st.integers(0, text.num_tokens - 1))
    end = data.draw(st.integers(begin + 1, text.num_tokens))
    stretch = Stretch(text, begin, end)
    assert stretch.tokens.tolist() == text.tokens.tolist()[begin:end]
    for name in ("document_ends", "line_ends"):
        ends, found = (getattr(each, name).tolist() for each in (text, stretch))
        units = [sum(each <= at for each in ends) for at in range(begin, end)]
        expected = np.cumsum([len([*unit]) for _, unit in groupby(units)])
        assert found == expected.tolist()


def test_a_stream_goes_on_with_what_was_learnt(outputs):
    trained, settings = loaded(outputs), Dynamic("sgd", lr=0.3, segment=4)
    texts = [Tokens([8, 9]), Tokens([8, 9], seed=1)]
    texts[1].tokens[8:] = texts[0].tokens[8:]
    one, other = (read_dynamically(trained, text, "stream", settings, {})[0] for text in texts)
    assert np.abs(one[8:] - other[8:]).max() > 1e-3


def test_weights_that_learn_nothing_are_the_trained_ones(outputs):
    trained = loaded(outputs)
    text = Text.of(TEST, trained.tokenizer)
    still = read_dynamically(trained, text, "stream", Dynamic("sgd", lr=1e-12), {})
    assert still[0].mean() == pytest.approx(trained.nll(TEST, protocol="stream"), abs=1e-5)


def same(trained, before):
    after = weights_of(trained)
    return all(torch.equal(before[name], after[name]) for name in before)


def test_the_model_is_unchanged_also_if_interrupted(outputs, monkeypatch):
    trained = loaded(outputs)
    before = {name: weight.detach().clone() for name, weight in weights_of(trained).items()}
    own = weights_of(trained)
    text = Text.of(TEST, trained.tokenizer)
    nll = trained.nll(TEST)
    read_dynamically(trained, text, "stream", Dynamic("sgd", lr=0.3), {})
    assert same(trained, before)
    take_step, taken = dynamic.take_step, []

    def interrupted(*arguments):
        taken.append(take_step(*arguments))
        if len(taken) == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(dynamic, "take_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_dynamically(trained, text, "stream", Dynamic("sgd", lr=0.3), {})
    assert same(trained, before)
    assert all(weight is own[name] for name, weight in weights_of(trained).items())
    assert all(weight.grad is None for weight in own.values())
    assert trained.nll(TEST) == nll


def test_weights_that_diverge_are_told(outputs):
    trained = loaded(outputs)
    text = Text.of(TEST, trained.tokenizer)
    with pytest.raises(UserError) as error:
        read_dynamically(trained, text, "stream", Dynamic("sgd", lr=1e38), {})
    assert str(error.value) == (
        "dynamic: the weights diverged at token 5 with rule=sgd, lr=1e+38, decay=0: lower lr"
    )


@pytest.mark.parametrize("rule", ["sgd", "rms"])
def test_weights_that_diverge_to_finite_numbers_are_told(outputs, rule):
    """Perplexities of 1e300 and more are no result, whatever the mean of the nll is."""
    trained = loaded(outputs)
    text = Text.of(TEST, trained.tokenizer)
    rms = {name: torch.ones_like(weight) for name, weight in weights_of(trained).items()}
    with pytest.raises(
        UserError, match=rf"^dynamic: the weights diverged .* rule={rule}, lr=1e\+06"
    ):
        read_dynamically(trained, text, "stream", Dynamic(rule, lr=1e6), rms)


def test_gradients_that_are_all_0_are_told(outputs):
    trained = loaded(outputs)
    rms = {name: torch.zeros_like(weight) for name, weight in weights_of(trained).items()}
    with pytest.raises(UserError) as error:
        read_dynamically(trained, Tokens([5]), "stream", Dynamic("rms"), rms)
    assert str(error.value) == (
        "dynamic: rule=rms divides by the gradients over the training text, and all of them are 0; "
        "take rule=sgd, or another training text"
    )


def test_sgd_has_no_settings_of_rms():
    with pytest.raises(UserError) as error:
        Methods(dynamic=Dynamic("sgd", epsilon=1e-3, windows=3)).check()
    assert str(error.value) == (
        "dynamic.epsilon=0.001, dynamic.windows=3: no effect with dynamic.rule=sgd; leave it out"
    )
    Methods(dynamic=Dynamic("rms", epsilon=1e-3, windows=3)).check()
    assert Dynamic("sgd").complete() == Dynamic("sgd", lr=0.25, decay=0.0)
    assert Dynamic("rms").complete() == Dynamic(
        "rms", lr=pytest.approx(5e-5), decay=pytest.approx(2e-3), epsilon=2e-5, windows=500
    )


def test_a_model_without_weights_is_refused(outputs):
    trained = loaded(outputs)
    for weight in weights_of(trained).values():
        weight.requires_grad_(False)
    with pytest.raises(UserError, match=r"^dynamic: the model has no weights that could learn"):
        read_dynamically(trained, Tokens([5]), "stream", Dynamic("sgd"), {})


def test_the_rows_of_an_evaluation(outputs, monkeypatch):
    """The training text is read once, and only where the rule needs it."""
    monkeypatch.setattr(dynamic, "NUM_LANES", 3)  # so that it has several windows
    trained = loaded(outputs)
    text, asked = Text.of(TEST, trained.tokenizer), []

    def train():
        asked.append(1)
        return Text.of(TRAIN, trained.tokenizer)

    evaluation = Evaluation(trained, "stream", train=train)
    settings, cache = Dynamic("rms", segment=4), Cache(5, 0.1, 0.2)
    one, two = evaluation.measure(text, Methods(cache, settings))
    (alone,) = evaluation.measure(text, Methods(dynamic=settings))
    assert asked == [1]
    assert (one["method"], two["method"]) == ("dynamic", "dynamic+cache")
    assert one["nll"] == alone["nll"] != two["nll"]
    assert (one["settings"]["lr"], one["settings"]["decay"]) == (4e-5, 4 * 4e-4)
    assert two["settings"] == {"size": 5, "theta": 0.1, "weight": 0.2}
    evaluation.measure(text, Methods(dynamic=Dynamic("sgd")))
    assert asked == [1]
    with pytest.raises(UserError, match=r"^dynamic: rule=rms needs the training text"):
        Evaluation(trained, "stream").measure(text, Methods(dynamic=settings))
    for other in (replace(settings, segment=3), replace(settings, windows=1), settings):
        (again,) = evaluation.measure(text, Methods(dynamic=other))
        fresh = Evaluation(trained, "stream", train=train)
        assert again["nll"] == fresh.measure(text, Methods(dynamic=other))[0]["nll"]
