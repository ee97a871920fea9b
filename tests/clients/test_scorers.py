"""minicons, surprisal and lm-evaluation-harness say of an exported model what lmkit says."""

import math
import warnings

import pytest
import torch
from trained_run import load, make_run

from lmkit import cli

TEXTS = ["the cat saw a dog on the mat .", "a zebra ran .", "the end"]
KINDS = {"word": ("lstm", "word"), "bpe": ("gru", "bpe"), "window": ("window", "characters")}


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    """A trained model, and its exported directory."""
    place = tmp_path_factory.mktemp("clients")
    run = make_run(place / "outputs", *KINDS[request.param])
    assert cli.main(["export", str(run.path), f"path={place / 'model'}"]) == 0
    return load(run), str(place / "model")


@pytest.fixture(autouse=True)
def libraries_may_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def own(trained, text):
    """The nll of each token but the closing <eos>."""
    return [token.nll for token in trained.score(text)][:-1]


def test_minicons(exported):
    scorer = pytest.importorskip("minicons.scorer")
    trained, path = exported
    model = scorer.IncrementalLMScorer(path, "cpu", trust_remote_code=True)
    for with_bos in (True, False):
        found = model.token_score(TEXTS, bos_token=with_bos, surprisal=True)
        for text, tokens in zip(TEXTS, found, strict=True):
            scores = [score for _, score in tokens]
            expected = own(trained, text)
            assert len(scores) == len(expected) + with_bos
            # Without the first token before it, minicons gives no score to a text's first.
            assert scores[1:] == pytest.approx(expected[1 - with_bos :], abs=1e-4)
    sums = model.sequence_score(TEXTS, bos_token=True, reduction=lambda x: x.sum().item())
    assert sums == pytest.approx([-sum(own(trained, text)) for text in TEXTS], abs=1e-3)


def test_surprisal(exported):
    """surprisal leaves <eos> out of what can come next: p / (1 - p(<eos>)) in the place of p."""
    surprisal = pytest.importorskip("surprisal")
    trained, path = exported
    model = surprisal.AutoHuggingFaceModel.from_pretrained(
        path, model_class="gpt", trust_remote_code=True
    )
    for text in TEXTS:
        (found,) = model.surprise([text])
        ids = trained.tokenizer.encode_text(text)
        rows = trained.score(text)[:-1]
        without_end = [math.log1p(-probability) for probability in of_eos(trained, ids)]
        expected = [row.nll + more for row, more in zip(rows, without_end, strict=True)]
        assert list(found.surprisals) == pytest.approx(expected, abs=1e-4)


def of_eos(trained, ids):
    """The probability of <eos> at each position of a text, by the model's own parts."""
    tokens = torch.tensor([[trained.tokenizer.eos_id, *ids[:-1]]])
    resets = torch.zeros(tokens.shape, dtype=torch.bool)
    with trained.computing():
        hidden = trained.model(tokens, resets, trained.model.initial_state(1)).hidden
        (log_prob,) = trained.head.log_prob(hidden)
    return log_prob[:, trained.tokenizer.eos_id].exp().tolist()


def test_lm_evaluation_harness(exported):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    trained, path = exported
    model = huggingface.HFLM(pretrained=path, trust_remote_code=True, device="cpu", batch_size=2)

    def requests(kind, *arguments):
        return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]

    pairs = [("the cat", " saw a dog"), ("", "a zebra ran ."), ("the", " end")]
    found = model.loglikelihood(requests("loglikelihood", *pairs))
    for (context, continuation), (log_prob, _) in zip(pairs, found, strict=True):
        before = len(trained.tokenizer.encode_text(context)) if context else 0
        expected = -sum(own(trained, context + continuation)[before:])
        assert log_prob == pytest.approx(expected, abs=1e-3)
    rolling = model.loglikelihood_rolling(
        requests("loglikelihood_rolling", *((text,) for text in TEXTS))
    )
    assert rolling == pytest.approx([-sum(own(trained, text)) for text in TEXTS], abs=1e-3)
