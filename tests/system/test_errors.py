"""Which errors are a sentence, and how a status is written where there is no room."""

import errno
import json
import os

import pytest

from lmkit.errors import MachineError, UserError, as_user_error, exit_code, room
from lmkit.run import Run
from lmkit.system.files import naming, write_over


def no_room(path: object = None, number: int = errno.ENOSPC) -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room there"),
        (errno.EDQUOT, "make room there or have the quota raised"),
        (errno.EFBIG, "raise the limit on the size of a file (ulimit -f)"),
        (errno.EROFS, "have the file system mounted for writing"),
    ],
)
def test_a_disk_that_takes_no_more_is_the_machines(tmp_path, number, remedy):
    error = as_user_error(no_room(str(tmp_path / "new" / "file"), number))
    assert isinstance(error, MachineError)
    assert str(error).startswith(f"cannot write {tmp_path}/new/file: {os.strerror(number)} (")
    assert str(error).endswith(f" are free); {remedy}")
    assert exit_code(no_room(None, number)) == 2


def test_a_library_that_raises_something_else_because_of_it(tmp_path):
    error = RuntimeError("the writer is closed")
    error.__context__ = no_room()
    assert str(as_user_error(error)) == (
        "cannot write a file: No space left on device; make room there"
    )


def test_other_files_are_named_and_defects_keep_their_stack(tmp_path):
    with pytest.raises(IsADirectoryError) as raised:
        tmp_path.read_text()
    assert str(as_user_error(raised.value)) == f"{tmp_path}: Is a directory"
    denied = as_user_error(PermissionError(errno.EACCES, "Permission denied", "x"))
    assert str(denied) == f"x: Permission denied; user {os.geteuid()} needs the permission"
    mistake = UserError("as it is")
    assert as_user_error(mistake) is mistake
    for defect in (ValueError("x"), ConnectionResetError(errno.ECONNRESET, "reset")):
        assert as_user_error(defect) is None
        assert exit_code(defect) == 1


def test_how_much_is_free(tmp_path, monkeypatch):
    found = os.statvfs(tmp_path)
    values = list(found)
    values[1:5] = 4096, 2048, 3, 2  # size of a block; blocks, free ones, those for everybody
    values[5:8] = 100, 0, 0
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))
    assert room(str(tmp_path)) == " (8 KiB of 8 MiB are free; no file more)"


def test_an_error_names_the_file_that_was_to_be_written(tmp_path):
    with pytest.raises(OSError, match="No space") as raised, naming(tmp_path / "a"):
        raise no_room()
    assert raised.value.filename == str(tmp_path / "a")


def test_a_status_is_written_where_there_is_no_room_for_a_second_file(tmp_path, monkeypatch):
    run = Run.create(tmp_path, "lm", "one", {})
    before = (run.path / "status.json").stat()

    def full(*_: object) -> None:
        raise no_room()

    monkeypatch.setattr("lmkit.run.directory.write_atomically", full)
    run.write_status("failed", "x", 2)
    run.release()
    after = (run.path / "status.json").stat()
    assert (after.st_ino, after.st_size > before.st_size - 30) == (before.st_ino, True)
    assert run.status()["status"] == "failed"
    with pytest.raises(OSError, match="No space"):  # who begins is not to begin then
        run.write_status("running")


def test_what_is_written_over_is_one_text_whichever_is_longer(tmp_path):
    file = tmp_path / "a.json"
    for value in ({"a": 1, "b": 2}, {}, {"a": [1, 2, 3, 4, 5]}):
        file.touch()
        write_over(file, json.dumps(value).encode())
        assert json.loads(file.read_text()) == value
