"""Whose classes may be named, where they are found, and what is said of those that are not."""

import sys
from pathlib import Path

import pytest

from lmkit.errors import UserError
from lmkit.system.allowed import (
    allowed_class,
    allowed_prefixes,
    find_in_working_directory,
    look_up,
    remedy,
)
from lmkit.system.source import folders, source_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which nothing is found yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    return tmp_path


@pytest.mark.parametrize("allowed", ["", "other", "not.there", "__main__"])
def test_the_working_directory_is_no_place_of_packages_by_itself(
    here: Path, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    (here / "tensorboardX.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.setenv("LMKIT_ALLOW", allowed)
    find_in_working_directory()
    assert str(here) not in sys.path


def test_it_is_one_after_all_others_where_it_has_what_is_allowed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "own_of_here").mkdir()
    (here / "own_of_here" / "cell.py").write_text("class Cell: ...\n")
    monkeypatch.setenv("LMKIT_ALLOW", "own_of_here.cell")
    find_in_working_directory()
    assert sys.path[-1] == str(here)
    assert allowed_class("own_of_here.cell.Cell", ("own_of_here.cell",)).__name__ == "Cell"
    assert folders("own_of_here") == [here / "own_of_here"]


@pytest.mark.parametrize("name", ["a b", "./mine", "*", "mine.", "mine/cell", "1a"])
def test_what_is_no_name_of_a_package_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("LMKIT_ALLOW", f"mine,{name}")
    with pytest.raises(UserError, match="expected names of packages or modules, as they are"):
        allowed_prefixes()


@pytest.mark.parametrize(
    ("path", "allowed", "line"),
    [
        ("mine.Cell", "", "; if mine is a package that you trust: export LMKIT_ALLOW=mine"),
        ("b.Cell", "a, c", "; if b is a package that you trust: export LMKIT_ALLOW=a,c,b"),
        ("os.system", "", ""),
        ("torch._Cell", "", ""),
        ("Cell", "", ""),
        ("$(rm).Cell", "", ""),
    ],
)
def test_the_line_to_type(
    monkeypatch: pytest.MonkeyPatch, path: str, allowed: str, line: str
) -> None:
    monkeypatch.setenv("LMKIT_ALLOW", allowed)
    assert remedy(path) == line


def test_a_private_name_is_no_ones_to_name() -> None:
    with pytest.raises(UserError) as error:
        allowed_class("mine._Cell", ("mine",))
    assert str(error.value) == (
        "mine._Cell is not allowed: what begins with an underscore is private"
    )


def test_what_is_not_there_or_imports_what_is_not(here: Path) -> None:
    (here / "needs_another.py").write_text("import not_there_at_all\n")
    sys.path.append(str(here))
    with pytest.raises(UserError) as error:
        look_up("needs_another.Cell")
    assert str(error.value) == (
        "needs_another cannot be imported: No module named 'not_there_at_all'"
    )
    with pytest.raises(UserError) as error:
        look_up("not_there_at_all.Cell")
    assert str(error.value) == (
        "not_there_at_all does not exist: No module named 'not_there_at_all'; it must be "
        "installed, or lie in the working directory"
    )


def test_a_source_that_is_no_python_is_a_mistake_in_its_file(here: Path) -> None:
    (here / "no_python.py").write_text("class Cell:\n    def of(self:\n")
    sys.path.append(str(here))
    with pytest.raises(UserError, match=rf"^{here}/no_python\.py: line 2: "):
        source_of("no_python")
