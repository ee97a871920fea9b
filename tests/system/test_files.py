"""Directories of files are whole or absent."""

import pytest

from lmkit.system import files
from lmkit.system.files import write_directory


def test_a_directory_takes_the_place_of_another(tmp_path):
    path = tmp_path / "made" / "directory"
    write_directory(path, {"a": b"1", "b": b"2"})
    write_directory(path, {"b": b"3"})
    assert {file.name: file.read_bytes() for file in path.iterdir()} == {"b": b"3"}
    assert list(path.parent.iterdir()) == [path]


def test_what_was_there_stays_if_the_new_one_fails(tmp_path, monkeypatch):
    path = tmp_path / "directory"
    write_directory(path, {"a": b"1"})
    real = files.write_atomically

    def fails(file, data):
        if file.name == "b":
            raise OSError(28, "No space left on device")
        real(file, data)

    monkeypatch.setattr(files, "write_atomically", fails)
    with pytest.raises(OSError, match="No space left") as error:
        write_directory(path, {"a": b"2", "b": b"3"})
    assert error.value.filename == str(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == {"a": b"1"}
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="No space left"):
        write_directory(tmp_path / "none" / "directory", {"b": b"3"})
    assert list(tmp_path.iterdir()) == [path]
