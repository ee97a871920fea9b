"""Stores against slow loops; damage, two processes at once and kill -9 while preparing."""

import json
import logging
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmkit.corpus import Document, Source
from lmkit.errors import UserError
from lmkit.store import Prepared, TokenStore, prepare
from lmkit.store.shard import Shard, write_shard
from lmkit.tokenizer import ByteLevelBPE, Bytes, Characters, Tokenizer, Word, base


class Texts(Source):
    """Documents from lists; `reads` names every split that was read."""

    def __init__(self, **texts: list[str]) -> None:
        self.texts = texts
        self.reads: list[str] = []
        super().__init__("texts", {}, {})

    def _own_splits(self) -> Iterable[str]:
        return self.texts

    def _read(self, split: str) -> Iterator[Document]:
        self.reads.append(split)
        return (Document(f"{split}/é{n}", text) for n, text in enumerate(self.texts[split]))

    def _content(self) -> Iterable[object]:
        return [self.texts]


def corpus() -> Texts:
    return Texts(train=["a b c\nd d\n", "é <eos> b", "a"], valid=["a x x\n", "b"])


def only_store(cache: Path) -> Path:
    return prepare(corpus(), Bytes(), cache).directory / "train"


def test_holds_what_the_tokenizer_gives(tmp_path: Path) -> None:
    source = corpus()
    prepared = prepare(source, Word(), tmp_path)
    assert prepared.tokenizer.vocabulary[:2] == ["<eos>", "a"]
    assert list(prepared.stores) == ["train", "valid"]
    assert prepared.source == source.describe()
    for split, store in prepared.stores.items():
        texts = source.texts[split]
        encoded = prepared.tokenizer.encode(texts)
        assert store.tokens.tolist() == encoded.ids.tolist()
        assert store.document_ends.tolist() == encoded.document_ends.tolist()
        assert store.line_ends.tolist() == encoded.line_ends.tolist()
        assert store.document_bytes.tolist() == [len(text.encode()) for text in texts]
        assert store.num_tokens == len(encoded.ids)
        assert store.num_lines == len(encoded.line_ends)
        assert store.num_documents == len(texts)
        assert store.num_bytes == sum(len(text.encode()) for text in texts)
        names = [store.document_id(n) for n in range(len(texts))]
        assert names == [f"{split}/é{n}" for n in range(len(texts))]
        assert (store.tokens.dtype, store.line_ends.dtype) == (np.uint16, np.uint64)
        assert isinstance(store.tokens, np.memmap)
        assert not store.tokens.flags.writeable
    assert (prepared.stores["train"].num_unknown, prepared.stores["valid"].num_unknown) == (0, 2)
    manifest = json.loads((prepared.directory / "valid" / "manifest.json").read_text())
    assert manifest["num_unknown"] == 2


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=9), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_batches_do_not_show(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int
) -> None:
    names = [f"{n}é" * (n % 3) for n in range(len(texts))]
    stores = []
    for length in (size, 1 << 20):
        directory = tmp_path_factory.mktemp("store")
        batches = base.in_batches(zip(names, texts, strict=True), lambda d: len(d[1]), length)
        write_shard(
            directory,
            (([name for name, _ in b], Bytes().encode([text for _, text in b])) for b in batches),
            Bytes(),
        )
        stores.append(Shard.open(directory, verify=True))
    assert stores[0].sha256 == stores[1].sha256
    assert [stores[0].document_id(n) for n in range(len(names))] == names


class Wide(Bytes):
    """Bytes with a vocabulary of any size."""

    def __init__(self, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size


@pytest.mark.parametrize(("size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_tokens_are_as_wide_as_the_vocabulary_needs(
    tmp_path: Path, size: int, dtype: type[np.unsignedinteger]
) -> None:
    encoded = Bytes().encode(["ab"])
    encoded.ids[0] = size - 1
    write_shard(tmp_path, [(["x"], encoded)], Wide(size))
    store = Shard.open(tmp_path)
    assert store.map("tokens").dtype == dtype
    assert store.map("tokens").tolist() == [size - 1, ord("b"), 256]


def test_no_token_beyond_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^token id 256 is beyond the vocabulary of 256$"):
        write_shard(tmp_path, [(["x"], Bytes().encode(["ab"]))], Wide(256))
    assert not (tmp_path / "manifest.json").exists()


def test_second_time_is_read_from_the_cache(tmp_path: Path) -> None:
    first = prepare(corpus(), Word(), tmp_path)
    source = corpus()
    again = prepare(source, Word(), tmp_path)
    assert source.reads == []
    assert (again.hash, again.directory) == (first.hash, first.directory)
    assert again.tokenizer.hash() == first.tokenizer.hash()
    run_s_own = prepare(source, first.tokenizer, tmp_path)
    assert source.reads == []
    assert run_s_own.hash == first.hash


def test_cache_goes_by_content_and_settings(tmp_path: Path) -> None:
    other_text = corpus()
    other_text.texts["valid"] = ["b"]
    tokenizers = [Word(), Word(min_frequency=2), Word(lower=True), Characters(), Bytes()]
    prepared = [prepare(corpus(), tokenizer, tmp_path) for tokenizer in tokenizers]
    prepared.append(prepare(other_text, Word(), tmp_path))
    assert len({each.hash for each in prepared}) == len(prepared)
    assert len({each.directory for each in prepared}) == len(prepared)
    assert prepared[-1].stores["valid"].num_documents == 1


def test_splits_join_the_cache_one_by_one(tmp_path: Path) -> None:
    assert list(prepare(corpus(), Word(), tmp_path, splits=["valid"]).stores) == ["valid"]
    source = corpus()
    prepare(source, Word(), tmp_path)
    assert source.reads == ["train"]


def test_tokenizer_given_as_trained_stays_as_it_is(tmp_path: Path) -> None:
    tokenizer = Word()
    tokenizer.train(["x x y"])
    digest = tokenizer.hash()
    prepared = prepare(corpus(), tokenizer, tmp_path)
    assert prepared.tokenizer.hash() == digest
    assert prepared.stores["valid"].num_unknown == 2


def test_splits_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        prepare(corpus(), Word(), tmp_path, splits=["test"])
    assert str(caught.value) == "the source has no split 'test': it has train, valid"
    with pytest.raises(UserError) as caught:
        prepare(Texts(test=["a"]), Word(), tmp_path)
    assert str(caught.value) == (
        "the source has no split 'train' (the tokenizer is trained on train): it has test"
    )
    assert list(prepare(Texts(test=["a"]), Bytes(), tmp_path).stores) == ["test"]


def test_empty_split(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            prepare(Texts(train=["a"], valid=[" ", ""]), Bytes(), tmp_path)
        assert str(caught.value) == (
            "texts has no documents for valid (2 empty ones): name text that has words"
        )
    assert {path.parent.name for path in tmp_path.glob("*/*/manifest.json")} == {"train"}


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = corpus()
    with pytest.raises(UserError) as caught:
        prepare(source, Word(), tmp_path / "file" / "cache")
    assert str(caught.value).endswith(
        ": cannot write the prepared data: Not a directory; "
        "make the place writable, free space there or name another directory"
    )
    assert str(caught.value).startswith(str(tmp_path / "file" / "cache"))
    assert source.reads == []


def test_full_disk_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot write the prepared data: No space left on device"):
        prepare(corpus(), Bytes(), tmp_path)
    assert {path.name for path in tmp_path.glob("*/*/*")} == set()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "cut": (lambda d: os.truncate(d / "tokens.bin", 7), "tokens.bin", "7 bytes, expected 48 bytes"),
    "gone": (
        lambda d: (d / "line_ends.bin").unlink(),
        "line_ends.bin",
        "no file, expected 32 bytes",
    ),
    "flipped": (
        lambda d: flip(d / "document_ids.bin"),
        "document_ids.bin",
        "27 bytes as expected, but not those written",
    ),
    "no manifest": (
        lambda d: (d / "manifest.json").unlink(),
        "manifest.json",
        "not a whole manifest (FileNotFoundError(2, 'No such file or directory'))",
    ),
    "half a manifest": (
        lambda d: os.truncate(d / "manifest.json", 30),
        "manifest.json",
        "not a whole manifest (JSONDecodeError(",
    ),
    "other manifest": (
        lambda d: (d / "manifest.json").write_text("[]"),
        "manifest.json",
        "not a whole manifest (TypeError(",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_set_aside_and_mended(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage, file, found = DAMAGE[kind]
    split = only_store(tmp_path)
    directory = split / "00000"
    sound = TokenStore.open(split, verify=True).sha256
    damage(directory)
    with pytest.raises(UserError) as caught:
        TokenStore.open(split, verify=True)
    message = str(caught.value)
    assert message.startswith(f"{directory / file}: the prepared data is damaged: found {found}")
    remedy = f"delete {directory}, and the command that prepared it makes it again"
    assert message.endswith(f"; {remedy}")
    with caplog.at_level(logging.WARNING):
        assert only_store(tmp_path) == split
    aside = directory.with_name("00000.damaged")
    assert [record.getMessage() for record in caplog.records] == [
        f"{message}\nsetting it aside as {aside} and preparing it again"
    ]
    assert aside.is_dir()
    assert TokenStore.open(split, verify=True).sha256 == sound
    caplog.clear()
    only_store(tmp_path)
    assert caplog.records == []


def test_open_looks_at_sizes_without_reading(tmp_path: Path) -> None:
    directory = only_store(tmp_path)
    flip(directory / "00000" / "document_ids.bin")
    assert TokenStore.open(directory).document_id(0) != "train/é0"
    os.truncate(directory / "00000" / "tokens.bin", 7)
    with pytest.raises(UserError, match=r"tokens\.bin: .* found 7 bytes, expected 48 bytes"):
        TokenStore.open(directory)


def test_changed_vocabulary_in_the_cache_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound = prepare(corpus(), Word(), tmp_path)
    (file,) = tmp_path.glob("*/tokenizer/tokenizer.json")
    file.write_text(file.read_text().replace('"b"', '"q"'))
    again = prepare(corpus(), Word(), tmp_path)
    assert len(caplog.records) == 1
    assert "the tokenizer is damaged: found SHA-256" in caplog.text
    assert again.hash == sound.hash


def test_release_keeps_the_content(tmp_path: Path) -> None:
    store = TokenStore.open(only_store(tmp_path))
    before = store.tokens.tolist()
    view = np.asarray(store.tokens)
    store.release()
    assert store.tokens.tolist() == view.tolist() == before


WORKER = """
import sys, time
from pathlib import Path
from lmkit.corpus.source import Document, Source
from lmkit.store import prepare
from lmkit.tokenizer import Bytes

cache, marks, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

class Slow(Source):
    def _own_splits(self):
        return ["train"]

    def _read(self, split):
        with marks.open("a") as file:
            print("reads", file=file)
        yield Document("0", "x" * 5_000_000)  # more than a batch: half is on disk already
        time.sleep(seconds)
        yield Document("1", "y")

    def _content(self):
        return ["the same"]

prepared = prepare(Slow("slow", {}, {}), Bytes(), cache)
print(prepared.hash, prepared.stores["train"].num_tokens)
"""


def start(cache: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(cache), str(cache.parent / "marks"), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(happened: partial[object], process: subprocess.Popen[str]) -> None:
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def half_written(cache: Path) -> bool:
    return any(path.stat().st_size for path in cache.glob("*/train/00000.tmp/tokens.bin"))


def test_two_processes_at_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = start(cache, 2.0)
    wait_until(partial(half_written, cache), first)
    second = start(cache, 0.0)
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert outputs[0][0] == outputs[1][0] != ""
    assert outputs[0][0].endswith(" 5000003\n")
    (store,) = (path.parent for path in cache.glob("*/train"))
    assert outputs[0][1] == ""
    assert outputs[1][1] == f"{store}: another process prepares it; waiting\n"
    assert (tmp_path / "marks").read_text() == "reads\n"


def test_killed_while_preparing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    victim = start(cache, 60.0)
    wait_until(partial(half_written, cache), victim)
    waiting = start(cache, 0.0)
    assert waiting.stderr is not None
    assert "waiting" in waiting.stderr.readline()
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    out, err = waiting.communicate(timeout=60)
    assert (out.split()[1], err) == ("5000003", "")
    assert {path.name for path in cache.glob("*/*")} == {"train"}
    assert {path.name for path in cache.glob("*/train/*")} == {"00000", "manifest.json"}
    third = start(cache, 0.0)
    assert third.communicate(timeout=60) == (out, "")
    assert (tmp_path / "marks").read_text() == "reads\n" * 2


MEMORY = """
import resource, sys
from pathlib import Path
from lmkit.corpus.source import Document, Source
from lmkit.store import prepare
from lmkit.tokenizer import Bytes, Word

class Many(Source):
    def _own_splits(self):
        return ["train"]

    def _read(self, split):
        line = "the cat sat on the mat and some more words of that kind \\n"
        return (Document(str(n), line * 2000) for n in range(int(sys.argv[2])))

    def _content(self):
        return [sys.argv[2]]

import pyarrow
for tokenizer in (Word(), Bytes()):
    store = prepare(Many("many", {}, {}), tokenizer, Path(sys.argv[1])).stores["train"]
    total = 0
    for start in range(0, store.num_tokens, 1 << 20):
        total += int(store.tokens[start:start + (1 << 20)].sum(dtype="int64"))
        store.release()
assert total > 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    def peak(num_documents: int) -> float:
        command = [sys.executable, "-c", MEMORY, str(tmp_path), str(num_documents)]
        return float(subprocess.check_output(command))

    small, large = peak(60), peak(400)  # 7 and 45 MB of text, 14 and 90 MB of ids of bytes
    assert large < small + 30, (small, large)


def test_progress_is_shown_to_people_alone(tmp_path: Path) -> None:
    code = WORKER.replace("Bytes()", "Word()").replace("import Bytes", "import Word")
    command = [sys.executable, "-c", code, str(tmp_path / "a"), str(tmp_path / "marks"), "0"]
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=slave, env=environment, check=True)
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert "training the word tokenizer: 5,000,001 characters" in shown
    assert "encoding train: 4 tokens" in shown
    assert "tokens/s" in shown
    command[3] = str(tmp_path / "b")
    quiet = subprocess.run(command, capture_output=True, check=True)
    assert quiet.stderr == b""
    assert quiet.stdout == run.stdout


@pytest.mark.parametrize("make", [Word, Characters, partial(ByteLevelBPE, 300), Bytes])
def test_every_tokenizer_prepares(tmp_path: Path, make: partial[Tokenizer]) -> None:
    first: Prepared = prepare(corpus(), make(), tmp_path)
    again = prepare(corpus(), make(), tmp_path)
    assert again.hash == first.hash
    assert again.tokenizer.decode(again.stores["train"].tokens[:3].tolist())


def test_wikitext_in_the_store(wikitext: Path, tmp_path: Path) -> None:
    splits = {name: [(wikitext / f"{name}.txt").read_text()] for name in ("train", "valid", "test")}
    stores = prepare(Texts(**splits), Word(), tmp_path).stores
    assert {name: store.num_tokens for name, store in stores.items()} == {
        "train": 2_088_628,
        "valid": 217_646,
        "test": 245_569,
    }
    assert [store.num_unknown for store in stores.values()] == [0, 0, 0]
