"""What a package exports is explained: a docstring for each name, a word for each tensor."""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import lmkit

PACKAGE = Path(lmkit.__file__).parent
FACES = sorted(
    ".".join(["lmkit", *file.relative_to(PACKAGE).parent.parts])
    for file in PACKAGE.rglob("__init__.py")
    if "__all__" in file.read_text()
)
PUBLIC = [(face, name) for face in FACES for name in importlib.import_module(face).__all__]


def explained(owner: type, name: str) -> str:
    """What a class, and those of lmkit that it is derived from, say of a member and of it all."""
    family = [each for each in owner.__mro__ if each.__module__.startswith("lmkit.")]
    texts = [vars(each)[name].__doc__ for each in family if name in vars(each)]
    return " ".join(filter(None, [*texts, *(each.__doc__ for each in family)]))


def functions(value: Any) -> Iterator[tuple[str, Any, str]]:
    """A public function, or the public methods that a class defines itself, and what is said."""
    if inspect.isfunction(value):
        yield value.__name__, value, value.__doc__ or ""
    elif inspect.isclass(value):
        for name, member in vars(value).items():
            member = getattr(member, "__func__", getattr(member, "fget", member))
            if inspect.isfunction(member) and (name == "__init__" or name[0] != "_"):
                yield name, member, explained(value, name)


@pytest.mark.parametrize(("face", "name"), PUBLIC)
def test_it_has_a_docstring(face: str, name: str) -> None:
    value = getattr(importlib.import_module(face), name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__doc__
        assert value.__doc__ != (getattr(value, "__base__", None) or object).__doc__
        # A dataclass, or a named tuple, without one is given its signature.
        assert not value.__doc__.startswith(f"{name}(")
        for method, function, text in functions(value):
            member = getattr(value, method, function)
            told = inspect.getdoc(member) or method == "__init__"
            if isinstance(member, property):
                told = told or re.search(rf"\b{method}\b", text)
            assert told, f"{name}.{method}"


@pytest.mark.parametrize(("face", "name"), PUBLIC)
def test_it_says_what_its_tensors_are(face: str, name: str) -> None:
    value = getattr(importlib.import_module(face), name)
    for method, function, text in functions(value):
        hints = inspect.get_annotations(function)
        tensors = [each for each in hints if hints[each] in ("Tensor", Tensor) and each != "return"]
        missing = [each for each in tensors if not re.search(rf"\b{each}\b", text)]
        assert not missing, f"{name}.{method}"
