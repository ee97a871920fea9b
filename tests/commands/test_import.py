"""`lmkit import`: models of other programs, against these models themselves."""

import json
import sys
from types import ModuleType

import pytest
import tokenizers
import torch
from journey import lmkit as in_process
from safetensors.torch import save_file
from torch import nn

import lmkit
from lmkit import cli

WORDS = ["<eos>", "the", "cat", "sat", "on", "a", "mat", "<unk>"]
TEXT = "the cat sat on the mat\na dog sat\n\nthe mat\n"

# The module of pytorch/examples, of which colorlessgreenRNNs and neural-complexity have copies.
EXAMPLE = """
from torch import nn


class RNNModel(nn.Module):
    def __init__(self, rnn_type, ntoken, ninp, nhid, nlayers, dropout=0.5, tie_weights=False):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(ntoken, ninp)
        if rnn_type in ("LSTM", "GRU"):
            self.rnn = getattr(nn, rnn_type)(ninp, nhid, nlayers, dropout=dropout)
        else:
            kind = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}[rnn_type]
            self.rnn = nn.RNN(ninp, nhid, nlayers, nonlinearity=kind, dropout=dropout)
        self.decoder = nn.Linear(nhid, ntoken)
        if tie_weights:
            self.decoder.weight = self.encoder.weight
        self.rnn_type, self.nhid, self.nlayers = rnn_type, nhid, nlayers
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("import")
    (place / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    (place / "text.txt").write_text(TEXT)
    return place


def saved(place, name, *arguments, **settings):
    """A module in a file, whose class is no longer there."""
    module = sys.modules["model"] = ModuleType("model")
    try:
        exec(EXAMPLE, module.__dict__)
        torch.manual_seed(2)
        made = module.RNNModel(*arguments, dropout=0.0, **settings)
        for parameter in made.parameters():
            nn.init.uniform_(parameter, -1, 1)
        torch.save(made, place / name)
    finally:
        del sys.modules["model"]
    return made.eval()


def ids(line):
    return [WORDS.index(w) if w in WORDS else WORDS.index("<unk>") for w in line.split()] + [0]


@torch.no_grad()
def nll_of(model, tokens):
    """Of each token after <eos>, from the zero state, by the module's own parts."""
    hidden, _ = model.rnn(model.encoder(torch.tensor([0, *tokens[:-1]])[:, None]))
    log_prob = model.decoder(hidden[:, 0]).log_softmax(-1)
    return [-log_prob[i, token].item() for i, token in enumerate(tokens)]


CASES = {
    "lstm": (("LSTM", 8, 5, 6, 2), {}),
    "tied": (("LSTM", 8, 6, 6, 2), {"tie_weights": True}),
    "gru": (("GRU", 8, 6, 6, 1), {}),
    "tanh": (("RNN_TANH", 8, 5, 7, 2), {}),
    "relu": (("RNN_RELU", 8, 5, 7, 1), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_an_imported_model_is_the_model(place, name, capsys):
    arguments, settings = CASES[name]
    model = saved(place, f"{name}.pt", *arguments, **settings)
    outputs = [f"outputs={place / 'outputs'}", f"run_id={name}"]
    command = ["import", str(place / f"{name}.pt"), f"vocabulary={place / 'vocab.txt'}", *outputs]
    assert cli.main([*command, "format=json"]) == 0
    trained = lmkit.load(place / "outputs" / "imported" / name)
    for protocol, texts in (
        ("sentence", [ids(line) for line in TEXT.splitlines()]),
        ("document", [[token for line in TEXT.splitlines() for token in ids(line)]]),
    ):
        found = [token.nll for token in trained.score(TEXT, protocol=protocol)]
        expected = [nll for tokens in texts for nll in nll_of(model, tokens)]
        assert found == pytest.approx(expected, abs=1e-5)


# Objects that models of other programs hold, with the attributes that these give them.
HELD = """
class Dictionary:
    def __init__(self, tokens):
        self.idx2item = [token.encode() for token in tokens]
        self.item2idx = {token: i for i, token in enumerate(self.idx2item)}


class Vocabulary:
    def __init__(self, tokens):
        self._tokens = {}
        for i, token in enumerate(tokens):
            self._tokens[token] = i
            self._tokens[i] = token


class CharVocab:
    def __init__(self, tokens):
        self.ss = Vocabulary
        self.c2i = {token: i for i, token in enumerate(tokens)}
        self.i2c = dict(enumerate(tokens))
"""
FLAIR = ["<unk>", "\n", "a", "b", " ", "ü"]
REINVENT = ["$", "^", "C", "Cl", "[nH]", "(", ")", "%10"]
MOSES = ["C", "N", "=", "<bos>", "<eos>", "<pad>", "<unk>"]


def held(kind, size):
    """What a program saves, the plain module that computes with it, and its vocabulary."""
    module = sys.modules["held"]
    torch.manual_seed(3)
    if kind == "flair":
        names, cell = ("encoder", "rnn", "decoder"), nn.LSTM(size - 1, 5, 2)
    elif kind == "reinvent":
        names, cell = ("_embedding", "_rnn", "_linear"), nn.GRU(size - 1, 5, 3, batch_first=True)
    else:
        names, cell = ("embedding_layer", "lstm_layer", "linear_layer"), nn.LSTM(size - 1, 5)
    parts = [nn.Embedding(size, size - 1), cell, nn.Linear(5, size)]
    for part in parts:
        for parameter in part.parameters():
            nn.init.uniform_(parameter, -1, 1)
    state = nn.ModuleDict(dict(zip(names, parts, strict=True))).state_dict()
    if kind == "flair":
        return parts, {
            **{"state_dict": state, "dictionary": module.Dictionary(FLAIR), "nlayers": 2},
            **{"is_forward_lm": True, "document_delimiter": "\n", "recurrent_type": "LSTM"},
        }
    if kind == "reinvent":
        return parts, {
            **{"model_type": "Reinvent", "vocabulary": module.Vocabulary(REINVENT)},
            **{"network": state, "network_params": {"layer_normalization": False}},
        }
    return parts, state


@pytest.fixture
def held_module(monkeypatch):
    module = ModuleType("held")
    exec(HELD, module.__dict__)
    monkeypatch.setitem(sys.modules, "held", module)
    return module


@pytest.mark.parametrize(
    ("kind", "tokens", "text", "expected"),
    [
        # Of each: the ids that the program reads and then predicts, the first one only read.
        ("flair", FLAIR, "ab x\nü", [1, 2, 3, 4, 0, 1, 5, 1]),
        ("flair", FLAIR, "ab\n", [1, 2, 3, 1]),
        ("reinvent", REINVENT, "CCl[nH](C)%10", [1, 2, 3, 4, 5, 2, 6, 7, 0]),
        ("moses", MOSES, "CN=X", [3, 0, 1, 2, 6, 4]),
    ],
)
@torch.no_grad()
def test_a_model_with_a_vocabulary_of_its_own(
    tmp_path, monkeypatch, held_module, kind, tokens, text, expected
):
    (embedding, rnn, linear), saving = held(kind, len(tokens))
    torch.save(saving, tmp_path / "model.pt")
    torch.save(held_module.CharVocab(MOSES), tmp_path / "vocab.pt")
    monkeypatch.delitem(sys.modules, "held")
    monkeypatch.chdir(tmp_path)
    vocabulary = ["vocabulary=vocab.pt"] if kind == "moses" else []
    assert cli.main(["import", "model.pt", *vocabulary, "run_id=one"]) == 0
    trained = lmkit.load("one")
    assert trained.precision == "32-true"
    inputs = torch.tensor(expected[:-1])
    hidden, _ = rnn(embedding(inputs)[None] if rnn.batch_first else embedding(inputs)[:, None])
    log_prob = linear(hidden.flatten(0, 1)).log_softmax(-1)
    nll = [-log_prob[i, token].item() for i, token in enumerate(expected[1:])]
    scored = trained.score(text)
    assert [token.token for token in scored] == expected[1:]
    assert [token.nll for token in scored] == pytest.approx(nll, abs=1e-5)
    assert len(trained.generate(num_tokens=5)) == 1
    record = json.loads((tmp_path / "outputs" / "imported" / "one" / "import.json").read_text())
    assert record.get("start") == {"flair": None, "reinvent": "^", "moses": "<bos>"}[kind]


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("flair", {"is_forward_lm": False}, "it reads backwards, so it does not predict"),
        ("flair", {"dictionary": None}, "vocabulary=FILE is missing"),
        ("reinvent", {"network_params": {"layer_normalization": True}}, "it normalises what"),
    ],
)
def test_models_that_compute_something_else(
    tmp_path, monkeypatch, capsys, held_module, kind, changed, message
):
    _, saving = held(kind, len({"flair": FLAIR, "reinvent": REINVENT}[kind]))
    torch.save(saving | changed, tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", "model.pt"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_a_smiles_that_the_vocabulary_lacks_is_refused(tmp_path, monkeypatch, capsys, held_module):
    _, saving = held("reinvent", len(REINVENT))
    torch.save(saving, tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", "model.pt", "run_id=one"]) == 0
    assert cli.main(["score", "one", "text=CBr"]) == 2
    told = capsys.readouterr().err
    assert told == "error: the vocabulary has no 'Br', and no token for unknown text\n"


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (["rnn.bias_hh_l1"], "rnn.*_l1: bias_hh missing, as it has bias_ih"),
        (["rnn.bias_ih_l0"], "rnn.*_l0: bias_ih missing, as it has bias_hh"),
        (
            ["rnn.bias_ih_l0", "rnn.bias_hh_l0"],
            "some layers have biases and others none: bias_ih and bias_hh missing",
        ),
    ],
)
def test_a_bias_that_is_missing_is_named(place, tmp_path, monkeypatch, capsys, lost, message):
    model = saved(place, "again.pt", "LSTM", 8, 5, 6, 2)
    monkeypatch.chdir(tmp_path)
    state = {name: value for name, value in model.state_dict().items() if name not in lost}
    torch.save(state, "model.pt")
    assert cli.main(["import", "model.pt", f"vocabulary={place / 'vocab.txt'}"]) == 2
    assert message in capsys.readouterr().err


def test_the_nonlinearity_of_a_state_dict_is_asked_for(place, tmp_path, monkeypatch, caplog):
    model = saved(place, "again.pt", "RNN_RELU", 8, 5, 7, 1)
    monkeypatch.chdir(tmp_path)
    torch.save(model.state_dict(), "model.pt")
    command = ["import", "model.pt", f"vocabulary={place / 'vocab.txt'}"]
    assert cli.main([*command, "run_id=told", "nonlinearity=relu"]) == 0
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    found = [token.nll for token in lmkit.load("told").score("the cat sat")]
    assert found == pytest.approx(nll_of(model, ids("the cat sat")), abs=1e-5)
    assert cli.main([*command, "run_id=not"]) == 0
    (warned,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warned.endswith("does not say its nonlinearity: taking tanh; nonlinearity=relu if not")
    whole = str(place / "again.pt")
    assert cli.main(["import", whole, *command[2:], "nonlinearity=tanh"]) == 2


def test_a_tied_matrix_that_was_saved_once(place, tmp_path, monkeypatch):
    """As transformers saves it: no output matrix, but its bias."""
    model = saved(place, "again.pt", "LSTM", 8, 6, 6, 2, tie_weights=True)
    monkeypatch.chdir(tmp_path)
    state = model.state_dict()
    bias = state.pop("decoder.bias")
    del state["decoder.weight"]
    save_file({**state, "lm_head.bias": bias}, "model.safetensors")
    vocabulary = f"vocabulary={place / 'vocab.txt'}"
    assert cli.main(["import", "model.safetensors", vocabulary, "run_id=one"]) == 0
    found = [token.nll for token in lmkit.load("one").score("the cat sat")]
    assert found == pytest.approx(nll_of(model, ids("the cat sat")), abs=1e-5)


def test_safetensors(place, tmp_path, monkeypatch, capsys):
    model = saved(place, "again.pt", "LSTM", 8, 5, 6, 2)
    monkeypatch.chdir(tmp_path)
    save_file(model.state_dict(), "model.safetensors")
    vocabulary = f"vocabulary={place / 'vocab.txt'}"
    assert cli.main(["import", "model.safetensors", vocabulary, "run_id=one"]) == 0
    found = [token.nll for token in lmkit.load("one").score("the cat sat")]
    assert found == pytest.approx(nll_of(model, ids("the cat sat")), abs=1e-5)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(data[:-9])
    assert cli.main(["import", "half.safetensors", vocabulary]) == 2
    assert "half.safetensors is no file of safetensors, or is damaged" in capsys.readouterr().err


def test_a_tokenizer_json_is_a_vocabulary(tmp_path, monkeypatch):
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}))
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    library.save(str(tmp_path / "tokenizer.json"))
    model = saved(tmp_path, "model.pt", "GRU", 8, 5, 6, 1)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", "model.pt", "vocabulary=tokenizer.json", "run_id=one"]) == 0
    found = [token.nll for token in lmkit.load("one").score("the dog sat")]
    assert found == pytest.approx(nll_of(model, ids("the dog sat")), abs=1e-5)


def test_a_text_begins_after_a_start_of_its_own(tmp_path, monkeypatch, capsys):
    words = ["<s>", "the", "cat", "</s>", "<unk>"]
    (tmp_path / "tokens.txt").write_text("".join(f"{w} {i}\n" for i, w in enumerate(words)))
    model = saved(tmp_path, "model.pt", "LSTM", 5, 6, 6, 2, tie_weights=True)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", "model.pt", "vocabulary=tokens.txt", "run_id=one"]) == 0
    assert "a text begins after" in capsys.readouterr().out
    hidden, _ = model.rnn(model.encoder(torch.tensor([0, 1, 2]))[:, None])
    log_prob = model.decoder(hidden[:, 0]).log_softmax(-1)
    nll = [-log_prob[i, token].item() for i, token in enumerate([1, 2, 3])]
    found = [token.nll for token in lmkit.load("one").score("the cat")]
    assert found == pytest.approx(nll, abs=1e-5)
    for bos, code in (("bos=</s>", 0), ("bos=x", 2)):
        assert cli.main(["import", "model.pt", "vocabulary=tokens.txt", bos, "run_id=two"]) == code
    assert "has no 'x', the word before which a text begins" in capsys.readouterr().err
    later = [token.nll for token in lmkit.load("two").score("the cat")]
    assert abs(later[0] - nll[0]) > 1e-3


@pytest.fixture(scope="module")
def imported(place):
    """A run that was imported in a process of its own, and what that printed."""
    saved(place, "model.pt", "LSTM", 8, 5, 6, 2)
    arguments = ["import", "model.pt", "vocabulary=vocab.txt", "name=theirs", "run_id=one"]
    return place / "outputs" / "theirs" / "one", in_process(*arguments, cwd=place)


def test_every_command_takes_it_like_another_run(place, imported):
    run, done = imported
    assert "lmkit score one file=TEXT" in done.stdout
    assert done.stderr == ""
    assert sorted(path.name for path in run.iterdir() if path.name != ".lock") == [
        *("checkpoints", "config.yaml", "environment.json", "import.json"),
        *("overrides.yaml", "status.json", "summary.json", "tokenizer.json"),
    ]
    sizes = 8 * 5, 4 * 6 * (5 + 6 + 2), 4 * 6 * (6 + 6 + 2), 8 * (6 + 1)
    assert json.loads((run / "summary.json").read_text()) == {"num_parameters": sum(sizes)}
    record = json.loads((run / "import.json").read_text())
    assert record["file"] == str(place / "model.pt")
    assert len(record["sha256"]) == len(record["vocabulary"]["sha256"]) == 64
    evaluated = in_process("evaluate", "one", "file=text.txt", "format=json", cwd=place)
    assert json.loads(evaluated.stdout)["num_tokens"] == 15
    assert "no best checkpoint" not in evaluated.stderr
    in_process("score", "latest", "text=the cat sat", cwd=place)
    in_process("generate", "one", "num_tokens=5", cwd=place)
    data = ["data=files", "data.path=text.txt", "data.unit=paragraph"]
    whole = ["data.valid_fraction=0", "data.test_fraction=0"]
    in_process("evaluate", "one", *data, *whole, "split=train", cwd=place)


def test_its_training_cannot_be_resumed(place, imported):
    failed = in_process("resume", "one", cwd=place, code=2)
    assert failed.stderr == (
        "error: theirs/one was imported: lmkit has no training of it to go on with\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pt"], "none.pt: no such file"),
        (["vocab.txt"], "vocab.txt is no file that PyTorch has saved, or is damaged"),
        (["text"], "text is no directory that lmkit export has written: it has no lmkit.json"),
        (["model.pt", "vocabulary=none.txt"], "vocabulary=none.txt: no such file"),
        (["model.pt", "vocabulary=short.txt"], "has 2 words, the model's matrices 8 rows"),
        (["model.pt", "vocabulary=null"], "vocabulary=FILE is missing"),
        (["model.pt", "embedding=coder"], "embedding=coder.: there is no coder.weight"),
        (["model.pt", "run_id=one"], "outputs/theirs/one is a run already: give another run_id"),
        (["model.pt", "model.hidden_size=3"], "model.pt says what the model is; leave it out"),
        (["model.pt", "vocabularly=x"], "did you mean vocabulary"),
        ([], "lmkit import needs a file"),
        (["wrong.pt"], "size mismatch for head.bias"),
    ],
)  # fmt: skip
def test_mistakes_are_told_and_leave_nothing(
    place, imported, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(place)
    (place / "text").mkdir(exist_ok=True)
    (place / "short.txt").write_text("<eos>\n<unk>\n")
    tensors = nn.ModuleDict(
        {"encoder": nn.Embedding(8, 4), "rnn": nn.LSTM(4, 5), "decoder": nn.Linear(5, 8)}
    ).state_dict()
    torch.save(tensors | {"decoder.bias": torch.zeros(3)}, "wrong.pt")
    before = sorted((place / "outputs").rglob("*"))
    given = ["vocabulary=vocab.txt", "name=theirs", "run_id=two"]
    assert cli.main(["import", *arguments[:1], *given, *arguments[1:]]) == 2
    assert message in capsys.readouterr().err
    assert sorted((place / "outputs").rglob("*")) == before


def test_a_write_that_fails_leaves_nothing(place, imported, monkeypatch, capsys):
    monkeypatch.chdir(place)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lmkit.commands.import_model.AtomicCheckpointIO.save_checkpoint", full)
    command = ["import", "model.pt", "vocabulary=vocab.txt", "name=theirs", "run_id=two"]
    assert cli.main(command) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (place / "outputs" / "theirs" / "two").exists()


def test_two_models_of_other_programs_say_what_those_said(tmp_path, monkeypatch, foreign_models):
    """neural-complexity's own table of surprisals, and the nll of pytorch/examples."""
    there = foreign_models
    monkeypatch.chdir(tmp_path)
    for name in ("neural-complexity", "word_language_model"):
        files = [str(there / name / "model.pt"), f"vocabulary={there / name / 'vocab.txt'}"]
        assert cli.main(["import", *files, f"run_id={name}"]) == 0
    trained = lmkit.load("neural-complexity")
    text = (there / "neural-complexity" / "sentences.txt").read_text()
    scored = [t for t in trained.score(text, protocol="sentence") if t.piece != "\n"]
    table = (there / "neural-complexity" / "surprisal.txt").read_text().splitlines()
    expected = [line.split() for line in table[1:-3]]  # without the header and the last lines
    assert len(scored) == len(expected) > 40
    assert [t.bits for t in scored] == pytest.approx([float(r[4]) for r in expected], abs=1e-4)
    model = there / "word_language_model"
    figures = json.loads((model / "expected.json").read_text())
    trained = lmkit.load("word_language_model")
    # Its first token, which was context alone, is an empty line's <eos>: lmkit begins with that.
    first, _, text = (model / "text" / "test.txt").read_text().partition("\n")
    assert not first.strip()
    tokens = trained.score(text, protocol="stream")
    assert len(tokens) == figures["num_targets"]
    nll = sum(token.nll for token in tokens) / figures["num_targets"]
    assert nll == pytest.approx(figures["nll"], abs=1e-5)
