"""`lmkit prepare`, and trainings from the directory of tokens that it makes."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lmkit
from lmkit.cli import main
from lmkit.command import commands
from lmkit.corpus import Source
from lmkit.errors import UserError
from lmkit.invoke import invoke
from lmkit.store import Store
from lmkit.tokenizer import Word

SMALL = ["model.embedding_size=8", "model.hidden_size=8", "model.num_layers=1", "data.batch_size=4"]


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Source, "piece_bytes", 3000)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    words = np.array([f"word{n}" for n in range(60)])
    directory = tmp_path / "text"
    directory.mkdir()
    for number in range(10):
        rows = [" ".join(rng.choice(words, 30)) for _ in range(10)]
        (directory / f"{number}.txt").write_text("\n\n".join(rows))
    return directory


def given(text: Path, tmp_path: Path) -> list[str]:
    outputs = f"outputs={tmp_path / 'outputs'}"
    return ["data=files", f"data.path={text}", "data.unit=paragraph", "tokenizer=word", outputs]


def result(argv: list[str], capfd: Any) -> dict[str, Any]:
    (name, *rest) = argv
    found = invoke(commands()[name], rest)
    capfd.readouterr()
    return json.loads(json.dumps(found))


def refused(argv: list[str], capfd: Any) -> str:
    capfd.readouterr()
    assert main(argv) == 2
    return capfd.readouterr().err.removeprefix("error: ").removeprefix("1 mistake:\n  ").strip()


def test_into_the_cache_where_a_training_finds_it(text: Path, tmp_path: Path, capfd: Any) -> None:
    argv = given(text, tmp_path)
    found = result(["prepare", *argv, "workers=1"], capfd)
    assert found["splits"]["train"]["encoded_tokens"] == found["splits"]["train"]["num_tokens"]
    assert found["splits"]["train"]["tokens_per_second"] > 0
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "outputs").rglob("*.bin")}
    assert len(files) > 3 * 6 * 3
    again = result(["prepare", *argv], capfd)
    assert "encoded_tokens" not in again["splits"]["train"]
    assert again["store"] == found["store"]
    assert main(["prepare", *argv, "workers=3"]) == 0
    shown = capfd.readouterr().out
    assert shown.endswith("to train: lmkit train " + " ".join(argv) + "\n")
    assert shown.count("was there") == 3
    assert main(["train", *argv, *SMALL, "trainer.max_steps=2", "run_id=a"]) == 0
    data = json.loads((tmp_path / "outputs/quick/a/data.json").read_text())
    assert data["store"] == found["store"]
    assert files == {
        file: file.stat().st_mtime_ns for file in (tmp_path / "outputs/.cache").rglob("*.bin")
    }


@pytest.fixture
def store(text: Path, tmp_path: Path, capfd: Any) -> Path:
    place = tmp_path / "a store, [for] all"
    assert main(["prepare", *given(text, tmp_path), f"store={place}", "workers=1"]) == 0
    assert f"data=store 'data.path={place}'" in capfd.readouterr().out
    return place


def test_a_training_needs_the_store_alone(
    text: Path, tmp_path: Path, store: Path, capfd: Any
) -> None:
    outputs = f"outputs={tmp_path / 'outputs'}"
    length = ["trainer.max_epochs=1", "data.bptt=9"]
    assert main(["train", *given(text, tmp_path), *SMALL, *length, "run_id=text"]) == 0
    shutil.rmtree(text)
    shutil.rmtree(tmp_path / "outputs" / ".cache")
    argv = ["data=store", f"data.path={store}", outputs]
    assert main(["train", *argv, *SMALL, *length, "run_id=a", "trainer.max_steps=3"]) == 0
    assert main(["resume", "a", "trainer.max_steps=-1", outputs]) == 0
    one, two = (tmp_path / "outputs/quick" / name for name in ("text", "a"))
    for name in ("val/nll", "test/nll"):
        nll = [json.loads((run / "summary.json").read_text())[name] for run in (one, two)]
        assert nll[0] == nll[1]
    assert (two / "tokenizer.json").read_bytes() == (store / "tokenizer.json").read_bytes()
    assert (two / "tokenizer.json").read_bytes() == (one / "tokenizer.json").read_bytes()
    data = json.loads((two / "data.json").read_text())
    assert data["source"]["source"] == "Files"
    assert data["splits"] == json.loads((one / "data.json").read_text())["splits"]
    evaluated = result(["evaluate", "a", outputs], capfd)
    assert evaluated["results"][0]["nll"] == pytest.approx(nll[0], abs=1e-5)
    assert main(["score", "a", "text=word1 word2", outputs]) == 0
    assert lmkit.load("a", outputs=tmp_path / "outputs").perplexity("word1 word2") > 1
    assert not (tmp_path / "outputs" / ".cache").exists()


def test_at_the_start_sizes_are_checked_and_verify_reads_all(
    text: Path, tmp_path: Path, store: Path, capfd: Any
) -> None:
    argv = ["train", "data=store", f"data.path={store}", f"outputs={tmp_path / 'outputs'}", *SMALL]
    verify = ["prepare", f"store={store}", "verify=true"]
    assert main(verify) == 0
    assert capfd.readouterr().out.count("all as written") == 3
    tokens = store / "train" / "00001" / "tokens.bin"
    data = bytearray(tokens.read_bytes())
    data[0] ^= 1
    tokens.write_bytes(data)
    assert main([*argv, "trainer.max_steps=1"]) == 0
    assert refused(verify, capfd).startswith(f"{tokens}: the prepared data is damaged: found")
    os.truncate(tokens, 10)
    told = refused(argv, capfd)
    assert told.startswith(f"{tokens}: the prepared data is damaged: found 10 ")
    remedy = f"delete {tokens.parent}, and the command that prepared it makes it again"
    assert told.endswith(remedy)
    shutil.rmtree(tokens.parent)
    assert main(["prepare", *given(text, tmp_path), f"store={store}"]) == 0
    assert main(verify) == 0


def test_directories_that_are_no_store(text: Path, tmp_path: Path, store: Path, capfd: Any) -> None:
    argv = given(text, tmp_path)
    train = ["train", "data=store", f"outputs={tmp_path / 'outputs'}"]
    assert refused([*train, f"data.path={tmp_path}/stor"], capfd).startswith(
        f"data.path={tmp_path}/stor does not exist; "
    )
    assert refused([*train, f"data.path={text}"], capfd) == (
        f"data.path={text} has no data.json: make it with lmkit prepare store={text}"
    )
    assert refused(["prepare", *argv, f"store={text}"], capfd) == (
        f"store={text} holds other files: name a directory of its own"
    )
    assert refused(["prepare", *argv, "tokenizer=bytes", f"store={store}"], capfd).startswith(
        f"store={store} is of another text or tokenizer: "
    )
    (text / "9.txt").write_text("another")
    assert refused(["prepare", *argv, f"store={store}"], capfd).startswith(
        f"store={store} is of another text or tokenizer: "
    )
    assert refused(["prepare", f"store={store}", "workers=0"], capfd) == (
        "workers=0: must be at least 1"
    )
    assert refused(["prepare", "verify=true"], capfd) == (
        "verify=true: name the directory too, with store=DIR"
    )
    assert refused(["prepare", "data=store", f"data.path={store}"], capfd) == (
        "data has tokens that are prepared already: give the text"
    )
    (store / "data.json").unlink()
    assert refused([*train, f"data.path={store}"], capfd) == (
        f"data.path={store} has not been finished: make it with the command that began it"
    )


def test_a_store_has_its_own_tokenizer_and_splits(tmp_path: Path, store: Path, capfd: Any) -> None:
    argv = ["train", "data=store", f"data.path={store}", f"outputs={tmp_path / 'outputs'}"]
    assert refused([*argv, "tokenizer=word"], capfd) == (
        "data=store and data=mixture have tokens of their own tokenizer: leave tokenizer out"
    )
    assert refused(["train", "tokenizer=stored"], capfd) == (
        "tokenizer=stored: name the saved tokenizer with tokenizer.path=DIR"
    )
    other = Word()
    other.train(["x y"])
    for tokenizer in (other, Word()):
        with pytest.raises(UserError, match=r"has tokens of another tokenizer \(word, "):
            Store(str(store)).prepared(tokenizer, tmp_path, None)
    assert Store(str(store)).prepared(None, tmp_path, ["test"]).stores.keys() == {"test"}
    assert not isinstance(Store(str(store)), Source)  # tokens, no documents
    shutil.rmtree(store / "valid")
    assert refused([*argv, "scheduler=plateau"], capfd) == (
        "scheduler watches val/nll but data has no valid split (it has train, test); validate, "
        "or set scheduler=constant"
    )
    (store / "train").rename(store / "valid")
    assert refused(argv, capfd) == (
        "data has no train split (it has valid, test): nothing to train on"
    )
    (store / "tokenizer.json").write_text(json.dumps({"format": "lmkit tokenizer 1"}))
    with pytest.raises(UserError, match="unknown tokenizer None"):
        Store(str(store)).prepared(None, tmp_path, None)


def test_bits_per_byte_of_a_store_are_watched_where_its_tokenizer_loses_nothing(
    text: Path, tmp_path: Path, store: Path, capfd: Any
) -> None:
    bits = ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/bits_per_byte"]
    outputs = f"outputs={tmp_path / 'outputs'}"
    few = [*SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=1", "threads=1", outputs]
    argv = ["train", "data=store", f"data.path={store}", *bits, *few]
    assert refused(argv, capfd) == (
        "callbacks.early_stopping.monitor=val/bits_per_byte: never logged; there are: val/nll, "
        "val/perplexity"
    )
    assert not (tmp_path / "outputs" / "quick").exists()
    whole = tmp_path / "whole"
    prepared = ["prepare", *given(text, tmp_path), "tokenizer=bytes", f"store={whole}"]
    assert main([*prepared, "workers=1"]) == 0
    assert main(["train", "data=store", f"data.path={whole}", *bits, *few]) == 0
