"""Sampling against a slow twin that reads the whole prefix again for every token."""

import json
from collections import Counter

import pytest
import torch
from torch import nn
from trained_run import MODELS, SlowTwin, load, make_run, real_stdout, warned

from lmkit.cli import main
from lmkit.commands.train import show
from lmkit.errors import UserError
from lmkit.inference import sampling
from lmkit.inference.sampling import Sampling, choose, sample_texts, sample_tokens


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def lstm(outputs):
    return make_run(outputs)


def slow_sample(trained, prompt, settings, index=0):
    """One sample, the whole prefix from the start for each token; plain lists, no tensors."""
    twin, eos_id = SlowTwin(trained), trained.tokenizer.eos_id
    generator = torch.Generator().manual_seed(settings.seed + index)
    tokens = []
    for _ in range(settings.num_tokens):
        log_prob = twin.log_prob([eos_id, *prompt, *tokens])[-1].double()
        if settings.temperature == 0:
            tokens.append(int(log_prob.argmax()))
            continue
        prob = (log_prob / settings.temperature).softmax(0).tolist()
        allowed = list(range(len(prob)))
        if settings.top_k or settings.top_p:
            allowed.sort(key=lambda i: -prob[i])
        allowed = allowed[: settings.top_k]
        if settings.top_p:
            mass, total, kept = 0.0, sum(prob[i] for i in allowed), []
            for i in allowed:
                if mass >= settings.top_p:
                    break
                kept.append(i)
                mass += prob[i] / total
            allowed = kept
        total = sum(prob[i] for i in allowed)
        left = float(torch.rand((), dtype=torch.float64, generator=generator)) * total
        for i in allowed:
            left -= prob[i]
            if left < 0:
                break
        tokens.append(i)
    return tokens


SETTINGS = [
    Sampling(num_tokens=25, num_samples=3),
    Sampling(num_tokens=25, temperature=0),
    Sampling(num_tokens=25, temperature=0.7, top_k=4, seed=3),
    Sampling(num_tokens=25, top_p=0.6, num_samples=2, seed=5),
    Sampling(num_tokens=25, temperature=1.5, top_k=9, top_p=0.8, seed=9),
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", MODELS)
def test_sampling_equals_rerunning_the_prefix(outputs, kind, settings, monkeypatch):
    monkeypatch.setattr(sampling, "PROMPT_POSITIONS", 2)  # a prompt of several chunks
    trained = load(make_run(outputs, kind))
    prompt = trained.tokenizer.encode_text("the cat sat\n a dog")
    fast = sample_tokens(trained.model, trained.head, prompt, settings, trained.tokenizer.eos_id)
    slow = [slow_sample(trained, prompt, settings, i) for i in range(settings.num_samples)]
    assert fast == slow


def chosen(probabilities, count=20_000, **settings):
    """How often each id is chosen when the draws are spread evenly: exact to 1 / count."""
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    log_prob = torch.tensor(probabilities).log().expand(count, -1)
    counts = Counter(choose(log_prob, uniform, Sampling(**settings)).tolist())
    return [counts[i] / count for i in range(len(probabilities))]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.4, 0.0, 0.2, 0.3]),
        ({"temperature": 0}, [0, 1, 0, 0, 0]),
        ({"temperature": 1e-30}, [0, 1, 0, 0, 0]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 0, 4 / 30, 9 / 30]),
        ({"temperature": 1e30}, [0.25, 0.25, 0, 0.25, 0.25]),
        ({"top_k": 1}, [0, 1, 0, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 0, 3 / 7]),
        ({"top_k": 99}, [0.1, 0.4, 0.0, 0.2, 0.3]),
        ({"top_p": 1e-9}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.39}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.41}, [0, 4 / 7, 0, 0, 3 / 7]),
        ({"top_p": 0.69}, [0, 4 / 7, 0, 0, 3 / 7]),
        ({"top_p": 0.71}, [0, 4 / 9, 0, 2 / 9, 3 / 9]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.0, 0.2, 0.3]),
        # top_p is a share of what top_k left: 4/7 of two tokens.
        ({"top_k": 2, "top_p": 0.5}, [0, 1, 0, 0, 0]),
        ({"top_k": 2, "top_p": 0.6}, [0, 4 / 7, 0, 0, 3 / 7]),
    ],
)
def test_tokens_come_as_often_as_they_should(settings, expected):
    frequencies = chosen([0.1, 0.4, 0.0, 0.2, 0.3], **settings)
    assert frequencies == pytest.approx(expected, abs=1e-4)
    assert [f == 0 for f in frequencies] == [e == 0 for e in expected]  # never by rounding


def test_equally_likely_tokens_all_come():
    assert chosen([0.25] * 4) == [0.25] * 4
    assert sorted(chosen([0.25] * 4, top_k=3)) == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=1e-4)
    assert chosen([0.25] * 4, temperature=0) == [1, 0, 0, 0]


def test_a_seed_is_a_text_whatever_is_sampled_beside_it(lstm):
    trained = load(lstm)
    three = trained.generate("the", num_samples=3, seed=4)
    assert trained.generate("the", num_samples=3, seed=4) == three
    assert [trained.generate("the", seed=4 + i)[0] for i in range(3)] == three
    assert len(set(three)) == 3
    assert all(text.startswith("the") for text in three)


def test_greedy_needs_no_seed(lstm):
    trained = load(lstm)
    texts = [trained.generate("a dog", temperature=0, seed=seed)[0] for seed in (1, 2)]
    assert texts[0] == texts[1]
    assert trained.generate("a dog", top_k=1, seed=3) == texts[:1]


def test_the_global_generator_and_the_mode_of_training_are_left_alone(lstm):
    trained = load(lstm)
    trained.model.dropout = trained.model.embedding_dropout = trained.model.output_dropout = 0.5
    trained.model.train()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    parts = (trained.model, trained.head, trained.tokenizer, "the", Sampling(), "document")
    texts = sample_texts(*parts)
    assert torch.equal(torch.rand(3), expected)
    assert trained.model.training
    assert sample_texts(*parts) == texts  # no dropout
    with torch.enable_grad():
        hidden, _, _ = trained.model(
            torch.zeros(1, 2, dtype=torch.int64),
            torch.zeros(1, 2, dtype=torch.bool),
            trained.model.initial_state(1),
        )
        hidden.sum().backward()  # nothing of the sampling stayed in the model


@pytest.mark.parametrize("kind", MODELS)
def test_a_token_costs_the_same_however_long_the_text(outputs, kind):
    trained = load(make_run(outputs, kind))
    seen = []

    class Watched(nn.Module):
        embedding = trained.model.embedding
        initial_state = staticmethod(trained.model.initial_state)

        def forward(self, tokens, resets, state):
            output = trained.model(tokens, resets, state)
            layers = (*state, *output.state, (tokens, output.hidden))
            seen.append([x.shape for layer in layers for x in layer])
            return output

    sampled = Sampling(num_tokens=40, num_samples=2)
    (first, second) = sample_tokens(Watched(), trained.head, [3, 4, 5], sampled, 0)
    assert len(first) == len(second) == 40
    assert len(seen) == 40  # the prompt, then one call for each token but the last
    assert all(shapes == seen[1] for shapes in seen[2:])
    assert seen[1][-2] == (2, 1)


def test_no_prompt_begins_where_a_document_does(lstm):
    trained = load(lstm)
    (text,) = trained.generate(num_tokens=6, temperature=0)
    ids = slow_sample(trained, [], Sampling(num_tokens=6, temperature=0))
    assert text == trained.tokenizer.decode(ids)


def test_a_sample_ends_before_the_stop_token(lstm):
    trained = load(lstm)
    (whole,) = trained.generate("the", num_tokens=40)
    words = whole.split(" ")
    for stop in (words[3], words[9]):
        (text,) = trained.generate("the", num_tokens=40, stop=stop)
        assert text == " ".join(words[: 1 + words[1:].index(stop)])
    several = trained.generate("the", num_tokens=40, num_samples=5, stop="on")
    assert several == [
        text.partition(" on")[0] for text in trained.generate("the", num_tokens=40, num_samples=5)
    ]


@pytest.mark.parametrize(
    ("tokenizer", "protocol", "ends"),
    [
        ("word", "document", set()),
        ("word", "stream", set()),
        ("word", "sentence", {"\n"}),
        ("characters", "document", {""}),
        ("characters", "sentence", {"", "\n"}),
    ],
)
def test_a_sample_ends_where_the_model_would_be_reset(outputs, tokenizer, protocol, ends):
    trained = load(make_run(outputs, tokenizer=tokenizer, protocol=protocol))
    settings = Sampling(num_tokens=400, seed=2)
    prompt = "the dog\nthe cat"
    read = prompt.rpartition("\n")[2] if "\n" in ends else prompt
    expected = []
    for token in slow_sample(trained, trained.tokenizer.encode_text(read), settings):
        if trained.tokenizer.pieces([token])[0] in ends:
            break
        expected.append(token)
    assert (len(expected) < 400) == bool(ends)
    (text,) = trained.generate(prompt, num_tokens=400, seed=2)
    given = trained.tokenizer.encode_text(prompt)
    assert text == prompt + trained.tokenizer.decode([*given, *expected]).removeprefix(prompt)


def test_unknown_words_of_a_prompt_are_counted(lstm, caplog):
    trained = load(lstm)
    trained.generate("a zebra saw zebras")
    trained.generate("qux")
    trained.generate("the cat")
    assert warned(caplog) == [
        f"{count} tokens are not in the vocabulary: <unk> stands for them"
        for count in ("2 of the prompt's 4", "1 of the prompt's 1")
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_tokens": 0}, "num_tokens=0: must be at least 1"),
        ({"num_samples": -1}, "num_samples=-1: must be at least 1"),
        ({"top_k": 0}, "top_k=0: must be at least 1"),
        ({"top_p": 0.0}, "top_p=0.0: must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p=1.1: must be above 0 and at most 1"),
        ({"temperature": -1.0}, "temperature=-1.0: must be a number from 0 (greedy) upwards"),
        (
            {"temperature": float("nan")},
            "temperature=nan: must be a number from 0 (greedy) upwards",
        ),
        ({"seed": -1}, "seed=-1: must be from 0 to 2^62"),
        (
            {"num_tokens": -2, "top_p": 2.0},
            "num_tokens=-2: must be at least 1; top_p=2.0: must be above 0 and at most 1",
        ),
        (
            {"stop": "the cat"},
            "stop=the cat: must be one token of the run's word tokenizer, found 2 ('the' ' cat'); "
            "name one of them, or <eos>",
        ),
        ({"stop": "qux"}, "stop=qux: not in the run's vocabulary, so it could never come"),
    ],
)
def test_settings_that_cannot_be(lstm, settings, message):
    with pytest.raises(UserError) as error:
        load(lstm).generate("the", **settings)
    assert str(error.value) == message


def test_the_command_prints_texts_or_one_json_document(lstm, capfd):
    arguments = ["generate", str(lstm.path), "prompt=the cat, the [dog]", "num_tokens=8"]
    expected = load(lstm).generate("the cat, the [dog]", num_tokens=8, num_samples=2, seed=3)
    assert main([*arguments, "num_samples=2", "seed=3"]) == 0
    out = capfd.readouterr().out
    assert all(text in out for text in expected)
    with real_stdout():
        assert main([*arguments, "num_samples=2", "seed=3", "format=json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["texts"] == expected
    assert result["run"] == "tiny/lstm-word-document"
    assert (result["prompt"], result["seed"]) == ("the cat, the [dog]", 3)
    assert main([*arguments, "num_tokens=0"]) == 2
    assert capfd.readouterr().err == "error: num_tokens=0: must be at least 1\n"


def test_what_the_model_writes_does_not_steer_the_terminal(outputs, capfd):
    run = make_run(outputs, tokenizer="bytes")
    (text,) = load(run).generate(num_tokens=200)
    assert "\x1b" in text or any(ord(c) < 32 for c in text)
    assert main(["generate", str(run.path), "num_tokens=200"]) == 0
    out = capfd.readouterr().out
    assert not [c for c in out if ord(c) < 32 and c not in "\n\t"]
    assert out.count("\N{REPLACEMENT CHARACTER}") > text.count("\N{REPLACEMENT CHARACTER}")


def test_what_is_to_be_pasted_stays_on_its_line(lstm, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    run, where = lstm, f" outputs={lstm.path.parents[1]}"
    show(run, run.config(), {"test/nll": 2.0})
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        f"more text:     lmkit generate {run.id}{where}",
        f"the dashboard: lmkit dashboard{where}",
    ]
