"""Stores whose hashes agree and whose numbers do not: one sentence, wherever they are opened."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damages import DAMAGES

from lmkit.cli import main
from lmkit.commands.prepare import prepare
from lmkit.errors import UserError
from lmkit.store import Store, TokenStore
from lmkit.store.vocabulary import _load
from lmkit.tokenizer import Bytes
from lmkit.windows import WindowLoader

LINES = "the cat\nsat on the mat\n"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sound")
    for n in range(12):
        (directory / "text" / f"{n}").mkdir(parents=True)
        (directory / "text" / f"{n}" / "a.txt").write_text(LINES * (n + 1))
    argv = ["data=files", f"data.path={directory / 'text'}", "tokenizer=bytes"]
    keys = ["data.valid_fraction=0.3", "data.test_fraction=0"]
    assert main(["prepare", *argv, *keys, f"store={directory / 'store'}", "workers=1"]) == 0
    return directory / "store"


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "store"))


def sign(store: Path, **keys: Any) -> None:
    """Write all hashes anew, so that they agree with the files as they are."""
    shard = store / "train" / "00000"
    manifest = json.loads((shard / "manifest.json").read_text()) | keys
    for name in manifest["files"]:
        data = (shard / f"{name}.bin").read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": digest(data)}
    (shard / "manifest.json").write_bytes(written := json.dumps(manifest, indent=1).encode())
    split = json.loads((store / "train" / "manifest.json").read_text())
    split["shards"][0] |= {"sha256": digest(written), "num_tokens": manifest["num_tokens"]}
    split |= {key: keys[key] for key in keys if key in split}
    (store / "train" / "manifest.json").write_bytes(text := json.dumps(split, indent=1).encode())
    data_json = json.loads((store / "data.json").read_text())
    data_json["splits"]["train"] |= {"sha256": digest(text)}
    data_json["splits"]["train"] |= {k: v for k, v in keys.items() if k.startswith("num_")}
    (store / "data.json").write_text(json.dumps(data_json))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def changed(name: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        file = store / "train" / "00000" / f"{name}.bin"
        array = np.fromfile(file, "<u2" if name == "tokens" else "<u8")
        change(array)
        array.tofile(file)
        sign(store)

    return damage


def swapped(array: Any) -> None:
    array[[0, 1]] = array[[1, 0]]


def set_to(place: int, value: int) -> Callable[[Any], None]:
    return lambda array: array.__setitem__(place, value)


# What is found as soon as it is opened, and what only by reading all of it.
WHEN_OPENED: dict[str, tuple[Callable[[Path], None], str]] = {
    "ends beyond the tokens": (
        changed("document_ends", lambda array: array.__imul__(1000)),
        r"document_ends\.bin: .* found [\d,]+ as the last end of [\d,]+ tokens; ",
    ),
    "ends that go back": (changed("document_ends", swapped), r"ends that do not increase; "),
    "a document without tokens": (
        changed("document_ends", set_to(0, 0)),
        r"document_ends\.bin: .* ends that do not increase; ",
    ),
    "lines beyond the tokens": (
        changed("line_ends", set_to(-1, 10**9)),
        r"line_ends\.bin: .* found 1,000,000,000 as the last end",
    ),
    "more tokens than there are": (
        lambda store: sign(store, num_tokens=10**9),
        r"tokens has [\d,]+ bytes, its counts say 2,000,000,000",
    ),
    "more documents than there are": (lambda store: sign(store, num_documents=10**6), "bytes, its"),
    "fewer lines than there are": (lambda store: sign(store, num_lines=1), "line_ends has "),
    "a count that is none": (lambda store: sign(store, num_bytes=-1), "num_bytes is -1"),
    "tokens of another width": (
        lambda store: sign(store, vocabulary_size=1 << 20),
        "uint16 for a vocabulary of 1048576",
    ),
    "another vocabulary": (
        lambda store: sign(store, vocabulary_size=300),
        r"has a vocabulary of 300, its tokenizer\.json of 257",
    ),
}
WHEN_READ: dict[str, tuple[Callable[[Path], None], str]] = {
    "a token beyond the vocabulary": (
        changed("tokens", set_to(3, 60_000)),
        r"tokens\.bin: .* found token id 60000 of a vocabulary of 257; ",
    ),
    "lines that go back": (changed("line_ends", swapped), r"line_ends\.bin: .* do not increase; "),
    "documents that end within lines": (
        changed("line_ends", lambda array: array.__setitem__(slice(0, -1), range(1, len(array)))),
        "a document that ends within a line",
    ),
    "bytes that are not their sum": (
        changed("document_bytes", set_to(0, 1)),
        r"document_bytes\.bin: .* bytes of text, expected ",
    ),
    "names that go back": (changed("document_id_ends", set_to(0, 10**6)), "not of its names"),
    "documents that no <eos> closes": (
        changed("tokens", lambda array: array.__setitem__(array == 256, 65)),
        "tokens that are not its tokenizer's",
    ),
}


@pytest.mark.parametrize("kind", WHEN_OPENED)
def test_a_contradiction_is_found_when_a_store_is_opened(store: Path, kind: str) -> None:
    damage, message = WHEN_OPENED[kind]
    damage(store)
    with pytest.raises(UserError, match=message):
        Store(str(store)).prepared(None, store, None)
    with pytest.raises(UserError):
        prepare({}, [], store=str(store), verify=True)


@pytest.mark.parametrize("kind", WHEN_READ)
def test_a_contradiction_is_found_by_verify(store: Path, kind: str) -> None:
    damage, message = WHEN_READ[kind]
    Store(str(store)).prepared(None, store, None)
    prepare({}, [], store=str(store), verify=True)
    damage(store)
    with pytest.raises(UserError, match=message):
        prepare({}, [], store=str(store), verify=True)


def test_no_window_has_a_token_beyond_the_vocabulary(store: Path) -> None:
    changed("tokens", set_to(3, 60_000))(store)
    opened = TokenStore.open(store / "train")
    loader = WindowLoader(opened, eos_id=256, protocol="document", num_lanes=2, bptt=9, seed=None)
    with pytest.raises(UserError) as caught:
        list(loader)
    directory = store / "train"
    assert str(caught.value) == (
        f"{directory / 'manifest.json'}: the prepared data is damaged: found token id 60000 of a "
        f"vocabulary of 257 in its shards; delete {directory}, and the command that prepared it "
        "makes it again"
    )


def test_lines_that_go_back_are_found_when_they_are_read(store: Path) -> None:
    changed("line_ends", swapped)(store)
    opened = TokenStore.open(store / "train")
    assert opened.num_lines
    with pytest.raises(UserError, match="ends that do not increase"):
        _ = opened.line_ends


def test_training_on_a_contradiction_is_one_sentence(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed("tokens", set_to(-2, 60_000))(store)
    keys = ["model.embedding_size=8", "model.hidden_size=8", "threads=1", "trainer.max_epochs=1"]
    argv = ["data=store", f"data.path={store}", *keys, "name=t", "run_id=r", "data.bptt=50"]
    assert main(["train", *argv, f"outputs={tmp_path / 'outputs'}"]) == 2
    assert "Traceback" not in (err := capsys.readouterr().err)
    assert "found token id 60000 of a vocabulary of 257" in err


def test_a_lost_split_is_not_none(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(store / "valid")
    lost = (
        f"data.path={store} has lost its split valid, which data.json names: make it anew with "
        "the command that prepared it"
    )
    with pytest.raises(UserError) as caught:
        Store(str(store)).prepared(None, store, None)
    assert str(caught.value) == lost
    assert main(["prepare", f"store={store}", "verify=true"]) == 2
    assert lost in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["a FIFO", "a directory", "endless", "a socket"])
@pytest.mark.parametrize(
    "file", ["data.json", "tokenizer.json", "train/manifest.json", "train/00000/manifest.json"]
)
def test_what_is_no_file_of_a_store_is_named_and_not_waited_for(
    store: Path, file: str, kind: str
) -> None:
    DAMAGES[kind](store / file)
    with pytest.raises(UserError, match=f"^{store / file} is a .*, not a file; "):
        Store(str(store)).prepared(None, store, None)


@pytest.mark.parametrize("text", [b"\xff\0", b""])
def test_a_plan_that_is_damaged_is_not_that_of_the_text(
    store: Path, text: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "plan.json").write_bytes(text)
    argv = ["data=files", f"data.path={store / 'data.json'}", "tokenizer=bytes"]
    assert main(["prepare", *argv, f"store={store}", "workers=1"]) == 2
    assert f"store={store} is of another text or tokenizer: " in capsys.readouterr().err


def test_a_hash_of_a_tokenizer_that_is_no_file_or_no_text(tmp_path: Path) -> None:
    Bytes().save(tmp_path)
    (tmp_path / "sha256").write_bytes(b"\xff")
    with pytest.raises(UserError, match="the tokenizer is damaged: found SHA-256 "):
        _load(tmp_path)
    DAMAGES["a FIFO"](tmp_path / "sha256")
    with pytest.raises(UserError, match="sha256 is a FIFO, not a file"):
        _load(tmp_path)


def test_a_lost_shard_is_damage(store: Path) -> None:
    shutil.rmtree(store / "train" / "00000")
    with pytest.raises(UserError, match=r"00000/manifest\.json: the prepared data is damaged"):
        Store(str(store)).prepared(None, store, None)


@pytest.mark.parametrize("key", ["tokenizer", "splits", "store", "source"])
def test_half_a_record_is_damage(store: Path, key: str) -> None:
    record = json.loads((store / "data.json").read_text())
    del record[key]
    (store / "data.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"data\.json is damaged: it is not what"):
        Store(str(store))


def test_the_text_of_a_store_is_that_of_its_tokens(sound: Path) -> None:
    opened = TokenStore.open(sound / "train", verify=True)
    text = Bytes().decode(opened.tokens[:].tolist())
    assert text.count("\n") * len(LINES) == 2 * len(text)
