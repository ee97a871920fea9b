"""Lanes and windows against a slow twin that lays every position out in Python lists."""

from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmkit.windows import WindowLoader, cut_stream, plan_lanes
from lmkit.windows.lanes import Protocol

EOS = 0


@dataclass
class Text:
    """A token store in memory: documents of lines of tokens 1, 2, 3, ..., each one unique."""

    documents: list[list[int]]  # the lengths of the lines of each document

    def __post_init__(self):
        self.num_tokens = sum(map(sum, self.documents))
        self.tokens = np.arange(1, self.num_tokens + 1, dtype=np.uint32)
        self.document_ends = np.cumsum([sum(lines) for lines in self.documents]).astype(np.uint64)
        self.line_ends = np.cumsum([n for lines in self.documents for n in lines]).astype(np.uint64)

    def release(self):
        pass


texts = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=12).map(
    Text
)
layouts = st.fixed_dictionaries(
    {
        "protocol": st.sampled_from(get_args(Protocol)),
        "num_lanes": st.sampled_from([1, 2, 4, 6]),
        "bptt": st.integers(1, 11),
        "variable_bptt": st.booleans(),
    }
)


def loader(text, seed=1, **kwargs):
    return WindowLoader(text, eos_id=EOS, seed=seed, **kwargs)


def lane_contents(windows):
    """Per lane the (input, target) pairs that count, cut at the resets; None marks a reset."""
    lanes = {}
    for window in windows:
        for row in range(window.tokens.shape[0]):
            lane = lanes.setdefault(row, [])
            for token, target, reset, mask in zip(
                *(x[row].tolist() for x in window[:4]), strict=True
            ):
                assert not (reset and mask)
                if reset:
                    lane.append(None)
                elif mask:
                    lane.append((token, target))
    return lanes


def assert_same(windows, others):
    assert [w.index for w in windows] == [w.index for w in others]
    for one, other in zip(windows, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:5], other[:5], strict=True))


def split_units(lane):
    units = []
    for item in lane:
        if item is None:
            units.append([])
        else:
            units[-1].append(item)
    return units


@given(texts, layouts, st.integers(0, 3))
def test_every_token_is_a_target_exactly_once(text, layout, seed):
    for kind in (seed, None):
        windows = list(loader(text, seed=kind, **layout))
        targets = torch.cat([w.targets[w.mask] for w in windows])
        assert sorted(targets.tolist()) == text.tokens.tolist()


@given(texts, layouts)
def test_units_are_read_whole_from_eos_and_reset_before(text, layout):
    if layout["protocol"] == "stream":
        return
    ends = text.document_ends if layout["protocol"] == "document" else text.line_ends
    expected = []
    for begin, end in pairwise([0, *ends.tolist()]):
        unit = text.tokens[int(begin) : int(end)].tolist()
        expected.append(list(zip([EOS, *unit[:-1]], unit, strict=True)))
    for seed in (1, None):
        lanes = lane_contents(loader(text, seed=seed, **layout))
        assert sorted(unit for lane in lanes.values() for unit in split_units(lane)) == expected


@given(texts, st.integers(1, 6), st.integers(1, 11))
def test_stream_lanes_are_contiguous_cuts_without_resets(text, num_lanes, bptt):
    lanes = lane_contents(loader(text, protocol="stream", num_lanes=num_lanes, bptt=bptt))
    pairs = [pair for row in range(num_lanes) for pair in lanes.get(row, [])]
    stored = text.tokens.tolist()
    assert pairs == list(zip([EOS, *stored[:-1]], stored, strict=True))
    lengths = [len(lanes.get(row, [])) for row in range(num_lanes)]
    assert max(lengths) - min(lengths) <= 1


@given(texts, layouts, st.integers(1, 3) | st.just(2**62))
def test_windows_are_cuts_of_the_same_lanes_at_any_bptt(text, layout, other):
    first = lane_contents(loader(text, **layout))
    second = lane_contents(loader(text, **{**layout, "bptt": other}))
    assert first == second


@given(texts, layouts, st.sampled_from([1, 2, 3]), st.none() | st.integers(1, 5))
def test_weights_make_the_mean_over_the_tokens_of_an_update(text, layout, accumulate, limit):
    windows = list(loader(text, accumulate=accumulate, limit=limit, **layout))
    assert len(windows) == min(len(loader(text, **layout)), limit or 10**9)
    for begin in range(0, len(windows), accumulate):
        group = windows[begin : begin + accumulate]
        counted = sum(int(w.mask.sum()) for w in group)
        for window in group:
            expected = window.mask.float() * (accumulate / max(counted, 1))
            torch.testing.assert_close(window.weight, expected)


@given(texts, layouts)
def test_counting_targets_needs_no_reading(text, layout):
    windows = loader(text, **layout)
    first = list(windows)
    counted = [int(w.mask.sum()) for w in first]
    assert [w.num_targets for w in first] == counted
    lanes = windows.lanes(0)
    edges = windows.edges(0, int(lanes.lengths.max()))
    assert lanes.num_targets(edges).tolist() == counted
    assert sum(counted) / (lanes.num_lanes * lanes.lengths.max()) == pytest.approx(
        windows.efficiency
    )


@given(texts, layouts)
def test_processes_share_the_rows_of_the_same_windows(text, layout):
    for seed in (1, None):
        whole = list(loader(text, seed=seed, **layout))
        world = 2 if layout["num_lanes"] % 2 == 0 else 1
        shares = [
            list(loader(text, seed=seed, rank=rank, world_size=world, **layout))
            for rank in range(world)
        ]
        for window in whole:
            parts = [share[window.index] for share in shares if window.index < len(share)]
            for kind in ("targets", "mask", "resets"):
                expected = sorted(getattr(window, kind).flatten().tolist())
                got = sorted(x for p in parts for x in getattr(p, kind).flatten().tolist())
                # A share may be trimmed in time where the other still has longer rows.
                padding = len(expected) - len(got)
                assert padding == 0 or seed is None
                fill = EOS if kind == "targets" else False
                assert sorted([*got, *[fill] * padding]) == expected
            if seed is not None:
                mean = sum(p.weight for p in parts) if world == 1 else None
                both = torch.cat([p.weight for p in parts]) / world
                torch.testing.assert_close(both, window.weight)
                assert mean is None or torch.equal(mean, window.weight)


@given(texts, layouts, st.integers(0, 3), st.integers(1, 3), st.sampled_from([1, 2]))
def test_drawn_lengths_fill_every_epoch_with_as_many_windows(
    text, layout, epoch, accumulate, world_size
):
    """In every process at the same positions, and with the mean of their lengths as the rate."""
    layout = {**layout, "num_lanes": 2, "variable_bptt": True, "accumulate": accumulate}
    read = [loader(text, rank=r, world_size=world_size, **layout) for r in range(world_size)]
    for _ in range(epoch):
        for each in read:
            list(each)
    shares = [list(each) for each in read]
    assert {len(windows) for windows in shares} == {len(read[0])}
    lengths = [window.tokens.shape[1] for window in shares[0]]
    assert min(lengths) >= 1
    assert sum(lengths) == read[0].lanes(epoch).lengths.max()
    assert all(lengths == [w.tokens.shape[1] for w in windows] for windows in shares)
    for begin in range(0, len(lengths), accumulate):
        mean = np.mean(lengths[begin : begin + accumulate]) / read[0].bptt
        for window in shares[0][begin : begin + accumulate]:
            assert window.rate == pytest.approx(mean)


@given(texts, layouts)
def test_evaluation_drops_rows_that_have_ended(text, layout):
    for window in loader(text, seed=None, **layout):
        alive = window.mask | window.resets
        assert alive[:, 0].all(), "every row left still has something to read"


@given(texts, layouts)
def test_the_tokens_of_the_lanes_are_the_windows_targets(text, layout):
    read = loader(text, seed=None, **layout)
    tokens = read.lanes(0).tokens
    for window in read:
        rows, time = window.tokens.shape
        begin = window.index * read.bptt
        here = tokens[:rows, begin : begin + time]
        assert np.array_equal(here >= 0, window.mask)
        assert np.array_equal(here[here >= 0] + 1, window.targets[window.mask])  # token 0 is 1
    assert sorted(tokens[tokens >= 0].tolist()) == list(range(text.num_tokens))


@given(texts, layouts, st.integers(0, 2), st.data())
def test_a_pass_resumes_where_its_state_was_taken(text, layout, epoch, data):
    straight = loader(text, **layout)
    for _ in range(epoch):
        list(straight)
    stop = data.draw(st.integers(0, len(straight)))
    reading = iter(straight)
    for _ in range(stop):
        next(reading)
    state = straight.state_dict()
    # Before the first and after the last window of a pass, what follows is a whole epoch.
    rest = list(reading) if 0 < stop < len(straight) else list(straight)
    resumed = loader(text, **layout)
    resumed.load_state_dict(state)
    assert_same(list(resumed), rest)
    assert_same(list(resumed), list(straight))


@given(texts, layouts)
def test_the_order_is_a_function_of_seed_and_epoch(text, layout):
    one, two = loader(text, **layout), loader(text, **layout)
    for _ in range(2):
        assert_same(list(one), list(two))


def test_epochs_and_seeds_differ_but_have_equally_many_windows():
    text = Text([[n] for n in range(1, 60)])
    first = loader(text, protocol="document", num_lanes=4, bptt=7)
    epochs = [torch.cat([w.targets[w.mask] for w in first]).tolist() for _ in range(2)]
    other = loader(text, seed=2, protocol="document", num_lanes=4, bptt=7)
    assert epochs[0] != epochs[1] != torch.cat([w.targets[w.mask] for w in other]).tolist()
    assert {len(list(first)) for _ in range(3)} == {len(first)}


def test_longest_first_filling_is_even():
    rng = np.random.default_rng(0)
    lengths = np.maximum(rng.lognormal(8, 0.7, 600), 1).astype(int)  # as WikiText-2's articles
    for num_lanes in (20, 40, 80):
        assert plan_lanes(np.cumsum(lengths), num_lanes, rng).efficiency > 0.98
    sentences = np.maximum(rng.normal(20, 6, 20_000), 1).astype(int)
    assert plan_lanes(np.cumsum(sentences), 80, rng).efficiency > 0.93


def test_one_document_too_long_shows_in_the_efficiency():
    assert plan_lanes([100, 110, 120], 3).efficiency == pytest.approx(120 / (3 * 101))
    assert cut_stream(7, 3).lengths.tolist() == [3, 2, 2]


@given(texts, layouts, st.integers(0, 2))
def test_the_documents_of_a_window_are_those_of_its_targets(text, layout, epoch):
    windows = loader(text, **layout)
    for _ in range(epoch):
        list(windows)
    for window in windows:
        tokens = window.targets[window.mask].numpy() - 1  # each is its place in the text
        expected = set(np.searchsorted(text.document_ends, tokens, side="right").tolist())
        assert windows.documents(epoch, window.index) == sorted(expected)
        assert (window.epoch, window.num_lanes) == (epoch, layout["num_lanes"])
