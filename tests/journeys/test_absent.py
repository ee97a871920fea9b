"""What cannot be read, has gone or has no UTF-8 name is named; it is never an empty set."""

import contextlib
import ctypes
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmkit.cli import main
from lmkit.corpus import Files, Jsonl, Parquet, WikiText
from lmkit.errors import UserError
from lmkit.inference.text import read_text
from lmkit.store import Store, prepare
from lmkit.system import paths
from lmkit.tokenizer import Bytes

READ_ALL = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, which root has


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """As a user whom permissions bind, also where the tests are run by root."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before, fewer = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    fewer[:] = before[:]
    fewer[0] &= ~READ_ALL
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with unprivileged():
            yield
    finally:
        path.chmod(mode)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    for name in ("a/1.txt", "a/b/2.txt", "3.txt"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(f"text {name}\n")
    return tmp_path / "texts"


def files(path: Path | str) -> Files:
    return Files(str(path), valid_fraction=0, test_fraction=0)


def mistake(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("pattern", ["", "/**/*.txt", "/**", "/*/*/*.txt"])
def test_a_folder_that_cannot_be_read_is_named(texts: Path, pattern: str) -> None:
    folder = texts / "a" / "b"
    with locked(folder):
        found = mistake(lambda: files(f"{texts}{pattern}"))
    assert found == f"data.path={texts}{pattern} cannot be read: {folder}: Permission denied"
    assert "a/b/2.txt" in files(texts)._files["train"]


@pytest.mark.parametrize("source", [Files, Jsonl])
def test_a_file_that_cannot_be_read_is_named(texts: Path, source: type[Files]) -> None:
    file = texts / "a" / "1.txt"
    with locked(file):
        found = mistake(lambda: source(str(file)).fingerprint())
    assert found == (
        f"{file} cannot be read (Permission denied): check that it is there, and its permissions"
    )


@pytest.mark.parametrize(
    "read",
    [
        files,
        lambda path: WikiText(str(path)),
        lambda path: Store(str(path)),
        lambda path: Parquet(str(path)),
        lambda path: read_text(None, str(path)),
    ],
)
def test_what_lies_in_a_folder_that_cannot_be_searched(
    texts: Path, read: Callable[[Path], object]
) -> None:
    with locked(texts / "a"):
        assert "Permission denied" in mistake(lambda: read(texts / "a" / "b"))


def test_each_folder_is_read_once_whatever_links_to_it(texts: Path) -> None:
    (texts / "a" / "loop").symlink_to(texts)
    (texts / "up").symlink_to("..")
    elsewhere = texts.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "4.txt").write_text("linked\n")
    (texts / "linked").symlink_to(elsewhere)
    names = ["3.txt", "a/1.txt", "a/b/2.txt", "linked/4.txt"]
    for path in (str(texts), f"{texts}/**/*.txt"):
        source = files(path)
        assert sorted(source._files["train"]) == names
        assert sorted(each.id for each in source.documents("train")) == names


def test_what_is_no_file_is_named(texts: Path) -> None:
    (link := texts / "gone.txt").symlink_to("nowhere")
    for path in (texts, f"{texts}/*.txt"):
        assert mistake(lambda path=path: files(path)) == (
            f"data.path={path} names {link}, a link to what is not there: mend it, or leave it out"
        )
    link.unlink()
    os.mkfifo(pipe := texts / "pipe.txt")
    for path in (texts, pipe, f"{texts}/p*"):
        assert mistake(lambda path=path: files(path)) == (
            f"data.path={path} names {f'{pipe},' if path == texts else 'no files: it is'} a pipe, "
            "socket or device: text is read more than once, so save it as a file"
        )
    pipe.unlink()
    with contextlib.chdir(texts), socket.socket(socket.AF_UNIX) as bound:
        bound.bind("s.txt")
        assert "a pipe, socket or device" in mistake(lambda: files(texts))
    assert "a pipe, socket or device" in mistake(lambda: files("/dev/null"))


NOT_UTF8 = os.fsdecode(b"\xff\xfe.txt")


def test_a_name_that_is_not_utf8_is_shown_byte_by_byte(texts: Path, tmp_path: Path) -> None:
    (texts / NOT_UTF8).write_text("strange\n")
    source = files(texts)
    store = prepare(source, Bytes(), tmp_path / "cache").stores["train"]
    ids = [store.document_id(n) for n in range(store.num_documents)]
    assert ids == ["3.txt", "a/1.txt", "a/b/2.txt", r"\xff\xfe.txt"]
    json.dumps(source.describe(), ensure_ascii=False).encode()
    (texts / r"\xff\xfe.txt").write_text("literally\n")
    assert mistake(lambda: files(texts)) == (
        rf"{texts} has two files that are called \xff\xfe.txt: rename one of them"
    )
    assert paths.readable("é\udcff") == "é\\xff"
    assert paths.readable("\ud800") == "\\ud800"


def test_a_config_holds_no_name_that_is_not_utf8(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (texts / NOT_UTF8).write_text("strange\n")
    argv = ["data=files", f"data.path={texts / NOT_UTF8}", f"outputs={tmp_path / 'outputs'}"]
    assert main(["train", *argv]) == 2
    assert (
        rf'data.path="{texts}/\xff\xfe.txt": not UTF-8, in which a config is written; name a file '
        "that is called so by its directory or a glob"
    ) in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_a_file_that_changes_while_it_is_prepared_is_noticed(texts: Path, tmp_path: Path) -> None:
    source = files(texts)
    source.fingerprint()
    (texts / "3.txt").write_text("another text\n")
    assert mistake(lambda: prepare(source, Bytes(), tmp_path / "cache")) == (
        f"{texts / '3.txt'} has changed since it was hashed, while it was prepared: run the "
        "command again when nothing writes to it"
    )
    assert prepare(files(texts), Bytes(), tmp_path / "cache").stores["train"].num_documents == 3
    source = files(texts)
    source.fingerprint()
    (texts / "3.txt").unlink()
    assert "3.txt cannot be read" in mistake(lambda: prepare(source, Bytes(), tmp_path / "other"))
