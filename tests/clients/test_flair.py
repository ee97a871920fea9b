"""A character language model of Flair: the imported run says of a text what Flair says."""

import warnings

import pytest
import torch

import lmkit
from lmkit import cli

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the libraries that it imports
    pytest.importorskip("flair")
    from flair.data import Dictionary
    from flair.models import LanguageModel

TEXT = "the cat Xat on the mat .\na dog barked\n"  # X is unknown


@pytest.mark.parametrize("whole", [False, True], ids=["saved", "pickled"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_perplexity_is_flairs(tmp_path, monkeypatch, kind, whole):
    monkeypatch.chdir(tmp_path)
    dictionary = Dictionary(add_unk=True)
    for character in sorted(set(TEXT) - {"X"}):
        dictionary.add_item(character)
    torch.manual_seed(1)
    settings = {"hidden_size": 12, "nlayers": 2, "embedding_size": 7, "recurrent_type": kind}
    model = LanguageModel(dictionary, True, **settings)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -1, 1)
    model.eval()
    if whole:
        torch.save(model, "model.pt")
    else:
        model.save("model.pt")
    assert cli.main(["import", "model.pt", "run_id=one"]) == 0
    trained = lmkit.load("one")
    # Flair's first character is context alone: the newline, after which lmkit begins.
    assert trained.perplexity(TEXT) == pytest.approx(
        model.calculate_perplexity(f"\n{TEXT}"), rel=1e-5
    )
    assert len(trained.score(TEXT)) == len(TEXT)
