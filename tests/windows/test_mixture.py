"""An endless mixture of texts: proportions, every token of a pass once, exact resume."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from journey import lmkit, rows

from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.errors import UserError
from lmkit.inference import Text
from lmkit.run.checkpoints import load_checkpoint
from lmkit.store import Mixture
from lmkit.windows import MixtureLoader
from lmkit.windows.mixture import shuffled

EOS = 0


def text_of(lengths: list[int], first: int) -> Text:
    """Documents of these lengths, in which every token is another number, from `first` on."""
    ends = np.cumsum(lengths)
    return Text(np.arange(first, first + ends[-1], dtype=np.uint32), ends, ends, 0, 0)


def loader(texts, weights, **settings) -> MixtureLoader:
    given = {"eos_id": EOS, "num_lanes": 3, "bptt": 5, "seed": 1, **settings}
    return MixtureLoader(texts, weights, **given)


def lanes(windows, num_lanes: int) -> list[list[tuple[int, int, bool, bool]]]:
    """What each lane reads, end to end: (input, target, reset, counts) by position."""
    parts = [(w.tokens, w.targets, w.resets, w.mask) for w in windows]
    return [
        [
            position
            for part in parts
            for position in zip(*(t[lane].tolist() for t in part), strict=True)
        ]
        for lane in range(num_lanes)
    ]


texts_of_lengths = st.lists(
    st.lists(st.integers(1, 12), min_size=1, max_size=8), min_size=1, max_size=3
)


@given(
    *(texts_of_lengths, st.integers(1, 4), st.integers(1, 7), st.integers(0, 99)),
    *(st.booleans(), st.data()),
)
def test_lanes_read_whole_documents_from_their_reset_on(
    all_lengths, num_lanes, bptt, seed, drawn, data
):
    weights = data.draw(
        st.lists(st.floats(0.1, 10), min_size=len(all_lengths), max_size=len(all_lengths))
    )
    texts = [text_of(lengths, 1000 * (i + 1)) for i, lengths in enumerate(all_lengths)]
    settings = {"num_lanes": num_lanes, "bptt": bptt, "seed": seed, "variable_bptt": drawn}
    mixture = loader(texts, weights, **settings)
    windows = [window for _ in range(3) for window in mixture]
    assert len(windows) == 3 * len(mixture)
    assert [w.index for w in windows] == list(range(len(windows)))
    documents = {
        tuple(t.tokens[end - length : end].tolist())
        for t, lengths in zip(texts, all_lengths, strict=True)
        for length, end in zip(lengths, t.document_ends, strict=True)
    }
    for lane in lanes(windows, num_lanes):
        starts = [i for i, position in enumerate(lane) if position[2]]
        assert starts[0] == 0
        for begin, end in zip(starts, [*starts[1:], None], strict=True):
            (_, *targets), (first, *inputs) = zip(
                *[(p[1], p[0]) for p in lane[begin:end]], strict=True
            )
            assert [p[3] for p in lane[begin:end]] == [False] + [True] * len(targets)
            assert [first, *inputs][:2] == [EOS, EOS][: len(targets) + 1]
            assert inputs[1:] == targets[:-1]
            whole = tuple(targets)
            assert whole in documents or (
                end is None and any(d[: len(whole)] == whole for d in documents)
            )


def test_drawn_lengths_are_the_rates_of_their_updates():
    texts = [text_of([10] * 100, 1000), text_of([10] * 1000, 10_000)]
    mixture = loader(texts, [1.0, 1.0], bptt=40, variable_bptt=True, accumulate=2)
    for _ in range(2):
        windows = list(mixture)
        lengths = [window.tokens.shape[1] for window in windows]
        assert len(set(lengths)) > 3
        assert sum(lengths) == mixture._positions
        for begin in range(0, len(windows), 2):
            mean = sum(lengths[begin : begin + 2]) / len(lengths[begin : begin + 2]) / 40
            for window in windows[begin : begin + 2]:
                assert window.rate == pytest.approx(mean)


@given(texts_of_lengths, st.integers(0, 99))
def test_a_pass_over_a_text_has_every_token_once(all_lengths, seed):
    texts = [text_of(lengths, 1000 * (i + 1)) for i, lengths in enumerate(all_lengths)]
    mixture = loader(texts, [1.0] * len(texts), num_lanes=1, bptt=1, seed=seed)
    seen: list[list[int]] = [[] for _ in texts]
    total = 3 * sum(t.num_tokens + len(t.document_ends) for t in texts) * len(texts)
    windows = islice((window for _ in iter(int, 1) for window in mixture), 3 * total)
    for window in windows:
        if window.mask.item():
            token = window.targets.item()
            seen[token // 1000 - 1].append(token)
    for t, tokens in zip(texts, seen, strict=True):
        for turn in range(len(tokens) // t.num_tokens):
            part = tokens[turn * t.num_tokens : (turn + 1) * t.num_tokens]
            assert Counter(part) == Counter(t.tokens.tolist())
    assert max(len(tokens) // t.num_tokens for t, tokens in zip(texts, seen, strict=True)) >= 1


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_shuffled_is_a_permutation(size, key):
    assert sorted(shuffled(place, size, key) for place in range(size)) == list(range(size))


def test_passes_differ_in_their_order():
    orders = {tuple(shuffled(place, 20, key) for place in range(20)) for key in range(50)}
    assert len(orders) == 50


def test_tokens_are_taken_in_proportion():
    texts = [text_of([7] * 300, 1000), text_of([3] * 2000, 10_000), text_of([11] * 50, 100_000)]
    weights = [5.0, 3.0, 2.0]
    mixture = loader(texts, weights, num_lanes=4, bptt=9, epoch_tokens=4000)
    counts = Counter(int(t) // 10_000 for w in mixture for t in w.targets[w.mask].tolist())
    tokens = [counts[0], counts[1], counts[10]]
    for found, weight in zip(tokens, weights, strict=True):
        # Within a document for each text and lane.
        assert abs(found - sum(tokens) * weight / 10) <= 11 * 4 * 2
    assert sum(tokens) == pytest.approx(4000, rel=0.02)
    padding = 1 - sum(tokens) / (len(mixture) * 36)
    assert 1 - mixture.efficiency == pytest.approx(padding, abs=0.01)


def test_an_epoch_reads_the_first_text_to_end_once():
    texts = [text_of([10] * 100, 1000), text_of([10] * 1000, 10_000)]
    mixture = loader(texts, [1.0, 1.0], num_lanes=1, bptt=11)
    first = [t for w in mixture for t in w.targets[w.mask].tolist() if t < 10_000]
    assert sorted(first) == list(range(1000, 2000))


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("stop", [0, 1, 2, 3, 7, 8, 9, 16])
def test_a_loader_goes_on_where_its_state_was_taken(accumulate, stop):
    texts = [text_of([4, 9, 2, 6], 1000), text_of([5] * 9, 10_000)]
    settings = {"accumulate": accumulate, "epoch_tokens": 120, "variable_bptt": stop % 2 == 0}
    whole = loader(texts, [2.0, 1.0], **settings)
    assert len(whole) == 10
    windows = [window for _ in range(3) for window in whole]
    cut = loader(texts, [2.0, 1.0], **settings)
    passes = (window for _ in iter(int, 1) for window in cut)
    for _ in range(stop):
        next(passes)
    again = loader(texts, [2.0, 1.0], **settings)
    again.load_state_dict(cut.state_dict())
    rest = [window for _ in range(3) for window in again][: 30 - stop]
    assert len(rest) == 30 - stop
    for ours, theirs in zip(rest, windows[stop:], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_share_the_rows_of_one(accumulate):
    texts = [text_of([4, 9, 2, 6], 1000), text_of([5] * 9, 10_000)]
    settings = {"num_lanes": 4, "accumulate": accumulate, "epoch_tokens": 200}
    one = list(loader(texts, [1.0, 1.0], **settings))
    two = [list(loader(texts, [1.0, 1.0], rank=r, world_size=2, **settings)) for r in (0, 1)]
    for whole, *parts in zip(one, *two, strict=True):
        for name in ("tokens", "targets", "resets", "mask"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            assert np.array_equal(joined, getattr(whole, name))
        # DDP divides by the number of processes.
        assert np.allclose(np.concatenate([p.weight for p in parts]), whole.weight * 2)
        assert [p.num_targets for p in parts] == [whole.num_targets] * 2
        assert [p.first_lane for p in parts] == [0, 2]


@pytest.mark.parametrize("limit", [None, 5])
def test_the_weight_of_an_update_is_one_over_its_targets(limit):
    texts = [text_of([4, 9, 2, 6], 1000)]
    windows = list(loader(texts, [1.0], accumulate=3, epoch_tokens=120, limit=limit))
    assert limit in (None, len(windows))
    for first in range(0, len(windows), 3):
        group = windows[first : first + 3]
        targets = sum(int(w.mask.sum()) for w in group)
        assert targets == sum(w.num_targets for w in group)
        assert all(float(w.weight.max()) == pytest.approx(3 / targets) for w in group)


@pytest.mark.parametrize("limit", [None, 3])
def test_the_documents_of_a_window(limit):
    texts = [text_of([4, 9, 2, 6], 1000), text_of([5] * 9, 10_000)]
    mixture = loader(texts, [1.0, 1.0], epoch_tokens=90, limit=limit)
    windows = [window for _ in range(2) for window in mixture]
    for place, window in enumerate(windows):
        expected = set()
        for token in window.targets[window.mask].tolist():
            number = int(token >= 10_000)
            place_in = token - (10_000 if number else 1000)
            expected.add(
                (number, int(np.searchsorted(texts[number].document_ends, place_in, "right")))
            )
        assert mixture.documents(*divmod(place, len(mixture))) == sorted(expected)


@pytest.fixture(scope="module")
def two_stores(tmp_path_factory, text) -> Path:
    """Directories A and B of stores with one tokenizer."""
    place = tmp_path_factory.mktemp("stores")
    other = place / "other.txt"
    other.write_text(text.read_text().replace("cat", "dog"))
    shared = ("prepare", "data=files", "data.unit=paragraph")
    lmkit(*shared, f"data.path={text}", "tokenizer=characters", "store=A", cwd=place)
    saved = ("tokenizer=stored", "tokenizer.path=A")
    lmkit(*shared, f"data.path={other}", *saved, "store=B", cwd=place)
    lmkit(*shared, f"data.path={other}", "tokenizer=bytes", "store=C", cwd=place)
    return place


def test_training_reads_a_mixture_and_resumes_to_the_bit(two_stores, settings, tmp_path):
    text = ("data=", "data.path", "data.unit", "tokenizer", "scheduler")
    own = [setting for setting in settings if not setting.startswith(text)]
    paths = [f"data.paths.{name}={two_stores / name}" for name in "AB"]
    weights = ["data.weights.A=3", "data.weights.B=1", "data.epoch_tokens=3000"]
    command = ["train", *own, "data=mixture", *paths, *weights]
    lmkit(*command, "run_id=whole", cwd=tmp_path)
    lmkit(*command, "run_id=cut", "trainer.max_steps=61", cwd=tmp_path)
    lmkit("resume", "cut", "trainer.max_steps=-1", cwd=tmp_path)
    whole, cut = (tmp_path / "outputs" / "tiny" / name for name in ("whole", "cut"))

    def train_rows(run: Path) -> list[dict]:
        return [row for row in rows(run) if "train/nll" in row]

    assert train_rows(cut) == train_rows(whole)
    one, other = (load_checkpoint(run / "checkpoints" / "last.ckpt") for run in (whole, cut))
    assert one["global_step"] == other["global_step"]
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, other["state_dict"][name])
    counts = json.loads((whole / "data.json").read_text())["splits"]
    alone = [json.loads((two_stores / n / "data.json").read_text())["splits"] for n in "AB"]
    for split in ("train", "valid", "test"):
        assert counts[split]["num_tokens"] == sum(c[split]["num_tokens"] for c in alone)
    lmkit("evaluate", "whole", cwd=tmp_path)


def test_document_is_the_protocol_without_a_preset(two_stores):
    paths = [f"data.paths.{name}={two_stores / name}" for name in "AB"]
    config, _ = check(compose(["~experiment", "name=a", "data=mixture", *paths]))
    assert "protocol" not in config["data"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["data.weights.A=1"],
            "data.weights=A: expected one for each of paths (A, B)",
        ),
        (
            ["data.weights.A=1", "data.weights.B=0"],
            "data.weights={'A': 1, 'B': 0}: B must be above 0",
        ),
        (
            ["data.protocol=stream"],
            "data.protocol=stream: data=mixture reads document by document; "
            "set data.protocol=document",
        ),
        (
            ["tokenizer=bytes"],
            "data=store and data=mixture have tokens of their own tokenizer: leave tokenizer out",
        ),
    ],
)
def test_mistakes(two_stores, arguments, message):
    paths = [f"data.paths.{name}={two_stores / name}" for name in "AB"]
    with pytest.raises(UserError) as error:
        check(compose(["data=mixture", *paths, *arguments]))
    assert str(error.value) == f"1 mistake:\n  {message}"


def test_stores_of_two_tokenizers_cannot_be_mixed(two_stores):
    mixture = Mixture({name: str(two_stores / name) for name in "AC"})
    with pytest.raises(UserError, match=r"data.paths.C has tokens of another tokenizer than data"):
        mixture.prepared(None, two_stores, None)
