"""Models as files of ONNX, read by onnxruntime as their clients read them."""

import json
import math
import sys

import numpy as np
import pytest
from trained_run import MODELS, load, make_run, real_stdout

import lmkit
from lmkit import cli

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TEXT = "the cat saw a dog\n a zebra ran ."
KINDS = {
    **{name: (name, "word", "document") for name in MODELS},
    "bpe": ("lstm", "bpe", "document"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("onnx") / "outputs"
    return {name: make_run(outputs, *kind) for name, kind in KINDS.items()}


def export(run, path, *arguments, code=0):
    given = ["export", str(run.path), f"path={path}", "format=onnx", *arguments]
    assert cli.main(given) == code
    return path


def session(path, name="model.onnx"):
    return onnxruntime.InferenceSession(str(path / name), providers=["CPUExecutionProvider"])


def own(run, text=TEXT):
    """The ids of a text with its end, and the nll of each."""
    scored = load(run).score(text, protocol="stream")
    return [token.token for token in scored], [token.nll for token in scored]


def zero(model, batch):
    """The state before a text, by the shapes that the file says; the time of it is free."""
    given = {}
    for each in model.get_inputs()[1:]:
        shape = [batch if isinstance(size, str) else size for size in each.shape]
        is_tokens = each.type == "tensor(int64)"
        given[each.name] = np.full(shape, -1) if is_tokens else np.zeros(shape, np.float32)
    return given


@pytest.mark.parametrize("name", KINDS)
def test_a_text_in_parts_and_in_batches_has_lmkits_nll(runs, tmp_path, name):
    path = export(runs[name], tmp_path / "model")
    model = session(path)
    ids, expected = own(runs[name])
    inputs = np.array([[ids[-1], *ids[:-1]]] * 3)
    state, rows = zero(model, 3), []
    for part in (inputs[:, :1], inputs[:, 1:4], inputs[:, 4:]):
        log_prob, *after = model.run(None, {"tokens": part, **state})
        state = dict(zip(state, after, strict=True))
        rows.append(log_prob)
    log_prob = np.concatenate(rows, axis=1)
    for row in log_prob:
        assert (-row[np.arange(len(ids)), ids]).tolist() == pytest.approx(expected, abs=1e-4)
    listed = (path / "tokens.txt").read_text().splitlines()
    assert [int(line.split(" ")[1]) for line in listed] == [*range(log_prob.shape[2])]


def test_sherpas_online_contract(runs, tmp_path):
    """As sherpa-onnx calls it: sos_id alone first, then token by token, from zeros of the sizes in
    the metadata."""
    path = export(runs["lstm"], tmp_path / "model", "contract=sherpa")
    model = session(path)
    about = model.get_modelmeta().custom_metadata_map
    assert about["model_type"] == "rnnlm"
    layers, size = int(about["num_layers"]), int(about["hidden_size"])
    assert [each.name for each in model.get_inputs()] == ["x", "h0", "c0"]
    h = c = np.zeros((layers, 1, size), np.float32)
    ids, expected = own(runs["lstm"])
    found = []
    for before, token in zip([int(about["sos_id"]), *ids], ids, strict=False):
        scores, h, c = model.run(None, {"x": np.array([[before]]), "h0": h, "c0": c})
        found.append(-scores.flatten()[token])
    assert found == pytest.approx(expected, abs=1e-4)


def test_sherpas_offline_contract(runs, tmp_path):
    path = export(runs["gru"], tmp_path / "model", "contract=sherpa_rescore")
    texts = ["the cat", "a zebra ran", "the"]
    expected = [sum(own(runs["gru"], text)[1]) for text in texts]
    tokens = [own(runs["gru"], text)[0][:-1] for text in texts]
    padded = np.array([ids + [3] * (5 - len(ids)) for ids in tokens])
    lengths = np.array([len(ids) for ids in tokens])
    (nll,) = session(path).run(None, {"x": padded, "x_lens": lengths})
    assert nll.shape == (3,)
    assert nll.tolist() == pytest.approx(expected, abs=1e-3)


def test_eight_bits_and_what_they_lose(runs, tmp_path, capfd):
    (tmp_path / "text.txt").write_text(TEXT)
    given = ["quantize=int8", f"file={tmp_path / 'text.txt'}", "format=json"]
    for contract in ("states", "sherpa_rescore"):
        path = tmp_path / contract
        with real_stdout():
            export(runs["lstm"], path, f"contract={contract}", *given)
        result = json.loads(capfd.readouterr().out)
        ids, nll = own(runs["lstm"])
        expected = math.exp(sum(nll) / len(ids))
        assert result["perplexity"] == pytest.approx(expected, rel=1e-4)
        assert result["int8_perplexity"] == pytest.approx(expected, rel=0.1)
        assert result["int8_perplexity"] != result["perplexity"]
        assert result["difference"] < 1e-3
        small = session(path, "model.int8.onnx")
        assert [i.name for i in small.get_inputs()] == [i.name for i in session(path).get_inputs()]
        assert sorted(each.name for each in path.iterdir()) == [
            *("model.int8.onnx", "model.onnx", "tokenizer.json", "tokens.txt")
        ]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gru", ["contract=sherpa"], "an LSTM whose layers are of one size, and this is gru of"),
        ("lstm", ["contract=sherpas"], "expected states | sherpa | sherpa_rescore"),
        ("lstm", ["quantize=int8"], "quantize=int8: name a text to measure its loss on"),
        ("lstm", ["quantize=int8", "file=none.txt"], "file=none.txt does not exist"),
        ("lstm", ["format=safetensors", "quantize=int8"], "are for format=onnx: leave them out"),
    ],
)
def test_mistakes(runs, tmp_path, monkeypatch, capsys, name, arguments, message):
    monkeypatch.chdir(tmp_path)
    export(runs[name], tmp_path / "new", *arguments, code=2)
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_computes_something_else_is_not_kept(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lmkit.export.onnx_model.TOLERANCE", 0.0)
    export(runs["lstm"], tmp_path / "new", code=1)
    assert "onnxruntime differs from PyTorch by" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_its_packages(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    export(runs["lstm"], tmp_path / "new", code=2)
    assert 'needs onnxruntime: pip install "recurrent-lmkit[onnx]"' in capsys.readouterr().err


@pytest.mark.parametrize("name", ["lstm", "window", "bpe"])
def test_safetensors_are_imported_again(runs, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    given = ["export", str(runs[name].path), "path=there", "format=safetensors"]
    assert cli.main(given) == 0
    assert cli.main(["import", "there", "run_id=again"]) == 0
    assert lmkit.load("again").score(TEXT) == load(runs[name]).score(TEXT)
