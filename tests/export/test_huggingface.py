"""Exported models: opened by transformers in a process without lmkit, and imported again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from trained_run import MODELS, load, make_run

import lmkit
from lmkit import cli
from lmkit.export.huggingface import write_huggingface
from lmkit.model import LSTM

pytest.importorskip("transformers")

KINDS = {
    **{name: (name, "word", "document") for name in MODELS},
    "bpe": ("lstm", "bpe", "document"),
    "bytes": ("gru", "bytes", "sentence"),
    "characters": ("lstm", "characters", "stream"),
}
TEXT = "the cat saw a dog\n a zebra ran ."
PROMPTS = ["the cat", "a", "the end . a dog"]

# What a client does with each directory: it knows nothing of lmkit.
CLIENT = """
import json, sys

sys.modules["lmkit"] = None  # an import of it fails
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, set_seed


def opened(path):
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).eval()
    return model, AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def rows(model, tokenizer, prompts, **how):
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    out = model.generate(**batch, max_new_tokens=9, min_new_tokens=9, **how)
    return out[:, -9:].tolist()


def padded(model, tokenizer, texts):
    \"\"\"Logits of each text from one batch, padded on either side and in between.\"\"\"
    found = {}
    for side in ("left", "right"):
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side=side)
        logits = model(**batch).logits
        found[side] = [l[m.bool()] for l, m in zip(logits, batch.attention_mask)]
    ids = tokenizer(texts[0], return_tensors="pt").input_ids
    between = torch.stack([ids, torch.full_like(ids, 1)], dim=2).flatten(1)
    mask = torch.tensor([1, 0]).repeat(1, ids.shape[1])
    found["between"] = [model(between, attention_mask=mask).logits[0, ::2]]
    return found


@torch.no_grad()
def report(path, text, prompts):
    model, tokenizer = opened(path)
    encoded = tokenizer(text, return_tensors="pt")
    ids = encoded.input_ids
    whole = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), ids], dim=1)
    output = model(whole, labels=whole, output_hidden_states=True)
    first = model(whole[:, :4])
    rest = model(whole[:, 4:], state=first.state)
    alone = [model(**tokenizer(prompt, return_tensors="pt")).logits[0] for prompt in prompts]
    apart = max(
        (found - logits).abs().max().item()
        for each in padded(model, tokenizer, prompts).values()
        for found, logits in zip(each, alone)
    )
    base = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
    again = path + ".saved"
    model.save_pretrained(again)
    set_seed(1)
    sampled = rows(model, tokenizer, prompts, do_sample=True, num_return_sequences=2)
    embeds = model.get_input_embeddings()(ids)
    with_embeds = None if model.config.cell == "window" else (
        model(inputs_embeds=embeds).logits - model(ids).logits).abs().max().item()
    greedy, beams = {"do_sample": False}, {"do_sample": False, "num_beams": 3}
    results = {
        "log_prob": output.logits.log_softmax(-1)[0].tolist(),
        "ids": ids[0].tolist(),
        "names": list(encoded),
        "fast": tokenizer.is_fast,
        "decoded": tokenizer.decode(ids[0], skip_special_tokens=False),
        "specials": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "loss": output.loss.item(),
        "without_bos": (model(**encoded).logits - output.logits[:, 1:]).abs().max().item(),
        "in_two": (rest.logits - output.logits[:, 4:]).abs().max().item(),
        "padded": apart,
        "embeds": with_embeds,
        "tuples": [len(model(ids, return_dict=False)), len(base(ids, return_dict=False)),
                   len(model(ids, labels=ids, return_dict=False, use_cache=False))],
        "hidden": len(output.hidden_states),
        "base": (base(whole).last_hidden_state - output.hidden_states[-1]).abs().max().item(),
        "saved": (opened_again(again)(whole).logits - output.logits).abs().max().item(),
        "kept": model(ids, logits_to_keep=1).logits.shape[1],
        "nothing": (model(ids, attention_mask=torch.zeros_like(ids)).state[0].float()
                    - model(whole[:, :1]).state[0].float()).abs().max().item(),
        "sampled": len(sampled),
        "greedy": rows(model, tokenizer, prompts, **greedy),
        "greedy alone": [rows(model, tokenizer, [p], **greedy)[0] for p in prompts],
        "greedy without cache": rows(model, tokenizer, prompts, use_cache=False, **greedy),
        "beams": rows(model, tokenizer, prompts, **beams),
        "beams alone": [rows(model, tokenizer, [p], **beams)[0] for p in prompts],
        "beams without cache": rows(model, tokenizer, prompts, use_cache=False, **beams),
    }
    return results


def opened_again(path):
    return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).eval()


text, prompts, places = json.loads(sys.stdin.read())
print(json.dumps({name: report(path, text, prompts) for name, path in places.items()}))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, lmkit.run.Run]:
    outputs = tmp_path_factory.mktemp("export") / "outputs"
    return {name: make_run(outputs, *kind) for name, kind in KINDS.items()}


def exported(run: lmkit.run.Run, path: Path) -> Path:
    assert cli.main(["export", str(run.path), f"path={path}"]) == 0
    return path


@pytest.fixture(scope="module")
def places(
    runs: dict[str, lmkit.run.Run], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("exported")
    return {name: exported(run, place / name) for name, run in runs.items()}


@pytest.fixture(scope="module")
def client(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    given = json.dumps([TEXT, PROMPTS, {name: str(path) for name, path in places.items()}])
    home = {"HF_HOME": str(tmp_path_factory.mktemp("hub")), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CLIENT],
        input=given,
        env={**os.environ, **home},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", KINDS)
def test_a_client_sees_what_lmkit_scores(
    runs: dict[str, lmkit.run.Run], client: dict[str, dict], name: str
) -> None:
    found, trained = client[name], load(runs[name])
    tokenizer = trained.tokenizer
    ids = tokenizer.encode_text(TEXT)
    assert found["ids"] == ids
    assert found["decoded"] == tokenizer.decode(ids)
    assert found["specials"] == [tokenizer.eos_id] * 3
    assert found["fast"]
    assert found["names"] == ["input_ids", "attention_mask"]
    # The protocol stream reads a text in one piece, however many lines it has.
    scored = trained.score(TEXT, protocol="stream")
    log_prob = torch.tensor(found["log_prob"])  # (time, vocabulary), after <eos> and each token
    own = -log_prob[torch.arange(len(ids)), torch.tensor(ids)]
    assert own.tolist() == pytest.approx([t.nll for t in scored[: len(ids)]], abs=1e-5)
    entropy = torch.special.entr(log_prob.exp()).sum(1)
    assert entropy[:-1].tolist() == pytest.approx([t.entropy for t in scored[: len(ids)]], abs=1e-4)
    assert found["loss"] == pytest.approx(own.mean().item(), abs=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_masks_states_and_outputs(client: dict[str, dict], name: str) -> None:
    found = client[name]
    for what in ("without_bos", "in_two", "padded", "base", "saved", "embeds", "nothing"):
        assert found[what] is None or found[what] < 1e-4, what
    assert found["tuples"] == [2, 2, 2]
    assert found["hidden"] == (3 if KINDS[name][0] in ("lstm", "gru", "tanh") else 2)
    assert found["kept"] == 1
    assert found["sampled"] == 6


@pytest.mark.parametrize("name", KINDS)
def test_it_generates_alike_with_a_state_in_batches_and_alone(
    client: dict[str, dict], name: str
) -> None:
    found = client[name]
    for how in ("greedy", "beams"):
        assert found[how] == found[f"{how} alone"] == found[f"{how} without cache"]
    if name not in ("relu", "sigmoid"):  # which say the same word again and again
        assert found["greedy"] != found["beams"]


def test_greedy_is_lmkits_own(runs: dict[str, lmkit.run.Run], client: dict[str, dict]) -> None:
    trained = load(runs["gru"])
    for prompt, ids in zip(PROMPTS, client["gru"]["greedy"], strict=True):
        if trained.tokenizer.eos_id not in ids:  # which min_new_tokens forbids
            (text,) = trained.generate(prompt, num_tokens=9, temperature=0)
            assert trained.tokenizer.encode_text(text)[-9:] == ids


@pytest.mark.parametrize("name", KINDS)
def test_it_is_imported_again(
    runs: dict[str, lmkit.run.Run],
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", str(places[name]), "run_id=again"]) == 0
    trained, again = load(runs[name]), lmkit.load("again")
    assert again.protocol == trained.protocol
    assert again.tokenizer.hash() == trained.tokenizer.hash()
    assert again.score(TEXT) == trained.score(TEXT)


def test_its_files_say_what_it_is(places: dict[str, Path], runs: dict[str, lmkit.run.Run]) -> None:
    path = places["lstm"]
    assert sorted(file.name for file in path.iterdir()) == [
        *("README.md", "config.json", "generation_config.json", "lmkit.json"),
        *("model.safetensors", "modeling_lmkit.py", "tokenizer.json", "tokenizer_config.json"),
    ]
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in path.iterdir())
    config = json.loads((path / "config.json").read_text())
    assert config["hidden_size"] == 12
    assert config["tie_word_embeddings"] is True
    card = (path / "README.md").read_text()
    assert "A recurrent language model (lstm, 2 layers of 12, 12, embeddings of 12, tied" in card
    assert "A text begins after `<eos>`, from the zero state" in card
    assert "before each document (protocol `document`)" in card
    assert str(path.parent) not in card
    assert str(runs["lstm"].path.parents[2]) not in "".join(
        file.read_text() for file in path.iterdir() if file.suffix in (".json", ".md", ".py")
    )


def test_the_card_has_what_was_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path / "outputs")
    run.write("summary.json", {"best/val/perplexity": 159.615, "test/perplexity": 1123.5})
    split = {"num_documents": 3, "num_tokens": 1234}
    data = run.read("data.json")
    run.write("data.json", {**data, "splits": {"train": {**data["splits"]["train"], **split}}})
    card = (exported(run, tmp_path / "model") / "README.md").read_text()
    assert "| validation | 159.62 |\n| test | 1,123.50 |" in card
    assert "lmkit's source `WikiText`." in card
    assert "| train | 3 | 1,234 |" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["path=full"], "is there already, and is no empty directory: give another"),
        (["path=file"], "is there already, and is no empty directory: give another"),
        ([], "path"),
        (["path=new", "format=ggml"], "format=ggml: expected huggingface"),
        (["path=new", "checkpoint=none"], "has no checkpoint=none"),
        (
            ["path=new", "model.dropout=0"],
            "model is not a key; there are: path, format, checkpoint",
        ),
    ],
)
def test_mistakes_are_told_and_leave_nothing(
    runs: dict[str, lmkit.run.Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["export", str(runs["lstm"].path), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_write_that_fails_leaves_nothing(
    runs: dict[str, lmkit.run.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lmkit.export.huggingface.save_file", full)
    assert cli.main(["export", str(runs["lstm"].path), f"path={tmp_path / 'new'}"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_classes_of_ones_own_are_refused(runs: dict[str, lmkit.run.Run], tmp_path: Path) -> None:
    class OwnModel(LSTM):
        pass

    class OwnHead(type(load(runs["lstm"]).head)):  # type: ignore[misc]
        pass

    facts = {"model": {}, "head": {}}
    trained = load(runs["lstm"])
    trained.model.__class__ = OwnModel
    with pytest.raises(lmkit.errors.UserError, match="model=OwnModel: the exported file knows"):
        write_huggingface(trained, facts, tmp_path / "new")
    trained = load(runs["lstm"])
    trained.head.__class__ = OwnHead
    with pytest.raises(lmkit.errors.UserError, match="head=OwnHead: the exported file knows"):
        write_huggingface(trained, facts, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_an_imported_model_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another program, by way of a run, for transformers: the card says where it is from."""
    parts = {"encoder": nn.Embedding(4, 3), "rnn": nn.LSTM(3, 5), "decoder": nn.Linear(5, 4)}
    torch.save(nn.ModuleDict(parts).state_dict(), tmp_path / "model.pt")
    (tmp_path / "vocab.txt").write_text("<eos>\nthe\ncat\n<unk>\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", "model.pt", "vocabulary=vocab.txt", "run_id=one"]) == 0
    assert cli.main(["export", "one", "path=there"]) == 0
    assert "Trained by another program, and imported." in Path("there/README.md").read_text()


def test_lmkit_registers_the_classes(places: dict[str, Path], tmp_path: Path) -> None:
    code = (
        "import sys, torch, lmkit.export.registered\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "print(type(model).__module__)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(places["lstm"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout == "lmkit.export.modeling_lmkit\n", done.stderr
