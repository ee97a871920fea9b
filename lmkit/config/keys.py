"""The keys of a config, read from the source text of its classes: type, default, description.

The classes are not imported, so that a list, a help page and a completion need no torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple

from lmkit.config.docstrings import described, google
from lmkit.config.groups import CONF
from lmkit.config.targets import BESIDE, FORWARDED, SLOTS, VALUES
from lmkit.system.source import Module, source_of

ROOT = "lmkit.config.check.Root"
TARGET = re.compile(r"^_target_: *(\S+)", re.MULTILINE)
NAMED = ("regularizers", "logger", "callbacks")  # groups that hold several objects, each by a name


class Key(NamedTuple):
    """One key of a signature, as written in the source; `default` is None if it has none."""

    type: str
    default: str | None
    line: str = ""

    @property
    def value(self) -> Any:
        """The default as a value of YAML; raises ValueError if YAML cannot hold it."""
        if self.default is None:
            return "???"
        value = ast.literal_eval(self.default)
        if not isinstance(value, str | int | float | bool | list | tuple | None):
            raise ValueError(self.default)
        return list(value) if isinstance(value, tuple) else value


def node_keys(config: Mapping[str, Any]) -> dict[str, Key]:
    """Every key of the objects of a composed config, by its dotted path, and the root keys."""
    keys = {name: key for name, key in class_keys(ROOT).items() if name not in SLOTS}
    for path, node in nodes(config):
        group = path.partition(".")[0]
        owners = [(str(node["_target_"]), SLOTS[group].given)]
        owners += [BESIDE[group]] if group in BESIDE else []
        for target, given in owners:
            for name, key in class_keys(target).items():
                if name not in given:
                    keys.setdefault(f"{path}.{name}", key)
    for path in VALUES.keys() & keys.keys():
        keys[path] = keys[path]._replace(type=" | ".join(VALUES[path]))
    return keys


def nodes(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a config by their paths, in the order of the groups."""
    for group in SLOTS:
        node = config.get(group)
        if not isinstance(node, Mapping):
            continue
        inner = node.items() if group in NAMED else [("", node)]
        for name, each in inner:
            if isinstance(each, Mapping) and "_target_" in each:
                yield f"{group}.{name}".removesuffix("."), each


def elsewhere(config: Mapping[str, Any], name: str, *, near: bool = False) -> list[str]:
    """The paths of a composed config that end in `name`, or with `near` in the nearest name."""
    paths: dict[str, list[str]] = {}
    for path in node_keys(config):
        if "." in path:
            paths.setdefault(path.rpartition(".")[2], []).append(path)
    close = [name]
    if near:
        most = f"max_{name}"  # a length by its unit, as `epochs`
        close = [most] if most in paths else get_close_matches(name, paths, n=1)
    return paths.get(close[0], []) if close else []


def option_targets(group: str) -> dict[str, str]:
    """The classes of lmkit's own options of a group, by the option, such as `data=files`."""
    files = sorted((CONF / group).glob("*.yaml"))
    matches = {file.stem: TARGET.search(file.read_text(encoding="utf-8")) for file in files}
    return {f"{group}={option}": target[1] for option, target in matches.items() if target}


def options_taking(group: str, name: str) -> list[str]:
    """lmkit's own options of a group whose class has the key, such as `data=files`."""
    targets = option_targets(group)
    return [option for option, target in targets.items() if name in class_keys(target)]


def is_found(target: str) -> bool:
    """Whether the source of the class at a dotted path is to be had."""
    return _locate(target) is not None


@cache
def class_keys(target: str) -> dict[str, Key]:
    """The keys of the class at a dotted path; none if its source is not found."""
    located = _locate(target)
    return _keys(*located) if located else {}


@cache
def function_keys(module: str, name: str) -> dict[str, Key]:
    """The keyword-only arguments of a function, with the lines of its docstring."""
    found = source_of(module)
    for node in found.tree.body if found else ():
        if isinstance(node, ast.FunctionDef) and node.name == name:
            assert found is not None
            pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            keys = {each.arg: _key(found, each.annotation, value) for each, value in pairs}
            lines = described(ast.get_docstring(node) or "", keys)
            return {key: value._replace(line=lines.get(key, "")) for key, value in keys.items()}
    return {}


def _keys(module: Module, owner: ast.ClassDef) -> dict[str, Key]:
    lineage = list(_lineage(module, owner))
    keys: dict[str, Key] = {}
    for named in _handed_on(lineage):
        # A required argument of a base class is passed by the class that inherits from it.
        new = {name: key for name, key in named.items() if key.default is not None or not keys}
        keys |= {name: key for name, key in new.items() if name not in keys}
    lines: dict[str, str] = {}
    for inside, each in lineage:
        lines = _lines(inside, each, keys) | lines
    return {name: key._replace(line=lines.get(name, "")) for name, key in keys.items()}


def _handed_on(lineage: Sequence[tuple[Module, ast.ClassDef]]) -> Iterator[dict[str, Key]]:
    """The arguments of a constructor, and of each that its **kwargs are passed on to."""
    for module, owner in lineage:
        if constructor := _member(owner, "__init__"):
            yield _arguments(module, constructor)
            if not constructor.args.kwarg:
                return
        elif _is_dataclass(owner):
            yield _fields(module, owner)
            return
    for module, owner in lineage:
        if target := FORWARDED.get(f"{module.name}.{owner.name}"):
            yield class_keys(target)


def _lineage(module: Module, owner: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef]]:
    """A class and its base classes, as far as their source is found."""
    yield module, owner
    for base in owner.bases:
        if resolved := _resolve(module, base):
            yield from _lineage(*resolved)


def _arguments(module: Module, function: ast.FunctionDef) -> dict[str, Key]:
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args][1:]
    padding: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults))
    defaults = [*padding, *arguments.defaults[-len(plain) :]] if plain else []
    pairs = [*zip(plain, defaults, strict=True)]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {argument.arg: _key(module, argument.annotation, value) for argument, value in pairs}


def _fields(module: Module, owner: ast.ClassDef) -> dict[str, Key]:
    return {
        field.target.id: _key(module, field.annotation, field.value)
        for field in owner.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def _key(module: Module, annotation: ast.expr | None, default: ast.expr | None) -> Key:
    return Key(_hint(module, annotation), ast.unparse(default) if default else None)


def _is_dataclass(owner: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in owner.decorator_list)


def _member(owner: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((n for n in owner.body if isinstance(n, ast.FunctionDef) and n.name == name), None)


def _hint(module: Module, node: ast.expr | None) -> str:
    """An annotation as messages write it: `float | null`, `uniform | orthogonal`."""
    match node:
        case None:
            return ""
        case ast.Constant(None):
            return "null"
        case ast.Constant(str(text)):
            return _hint(module, ast.parse(text, mode="eval").body)
        case ast.BinOp(left, ast.BitOr(), right):
            return f"{_hint(module, left)} | {_hint(module, right)}"
        case ast.Subscript(ast.Name("Literal"), inner):
            options = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            named = (str(option.value) for option in options if isinstance(option, ast.Constant))
            return " | ".join(dict.fromkeys(named))
        case ast.Subscript(ast.Name("Annotated"), ast.Tuple([inner, *_])):
            return _hint(module, inner)
        case ast.Subscript(ast.Name("Optional"), inner):
            return f"{_hint(module, inner)} | null"
        case ast.Subscript(ast.Name("Union"), ast.Tuple(elements)):
            return " | ".join(_hint(module, each) for each in elements)
        case ast.Subscript(ast.Name(name), inner):
            return f"{name}[{_hint(module, inner)}]"
        case ast.Tuple(elements):
            return ", ".join(_hint(module, each) for each in elements)
        case ast.Name(name):
            value = _value_of(module, name)
            return _hint(*value) if value else name
    return ast.unparse(node)


def _value_of(module: Module, name: str) -> tuple[Module, ast.expr] | None:
    """The expression that is assigned to a name of a module, if any."""
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return module, node.value
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.target) == name:
            return module, node.value
    if origin := _origin(module, name):
        found = source_of(origin[0])
        return _value_of(found, origin[1]) if found else None
    return None


def _locate(target: str) -> tuple[Module, ast.ClassDef] | None:
    place, _, name = target.rpartition(".")
    module = source_of(place) if place else None
    return _class(module, name) if module else None


def _resolve(module: Module, base: ast.expr) -> tuple[Module, ast.ClassDef] | None:
    if isinstance(base, ast.Subscript):
        base = base.value
    name = ast.unparse(base)
    first, _, rest = name.partition(".")
    if not rest:
        return _class(module, name)
    origin = _origin(module, first)
    return _locate(f"{'.'.join(filter(None, origin))}.{rest}") if origin else None


def _class(module: Module, name: str) -> tuple[Module, ast.ClassDef] | None:
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
    origin = _origin(module, name)
    found = source_of(origin[0]) if origin else None
    return _class(found, origin[1]) if found and origin else None


def _origin(module: Module, name: str) -> tuple[str, str] | None:
    """The module and the name from which `module` imports a name; "" if it imports a module."""
    for node in module.tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    start = module.package.split(".")
                    start = start[: len(start) - node.level + 1] if node.level else []
                    return ".".join([*start, *filter(None, [node.module])]), alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return alias.name, ""
    return None


def _lines(module: Module, owner: ast.ClassDef, keys: Collection[str]) -> dict[str, str]:
    """The description of each key in the docstrings of a class and of its constructor."""
    constructor = _member(owner, "__init__")
    texts = [ast.get_docstring(owner), constructor and ast.get_docstring(constructor)]
    texts.append(_assigned_doc(module, owner.name))
    lines: dict[str, str] = {}
    for text in texts:
        if text:
            lines = described(text, keys) | google(text, keys) | lines
    return lines


def _assigned_doc(module: Module, name: str) -> str | None:
    """The text that a module assigns to NAME.__doc__, as torch.optim does."""
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == f"{name}.__doc__":
            return _text(module, node.value)
    return None


def _text(module: Module, node: ast.expr) -> str:
    """The string that an expression of literals and names of the module stands for."""
    match node:
        case ast.Constant(str(text)):
            return text
        case ast.JoinedStr(values):
            return "".join(_text(module, value) for value in values)
        case ast.FormattedValue(value):
            return _text(module, value)
        case ast.BinOp(left, ast.Add(), right):
            return _text(module, left) + _text(module, right)
        case ast.Name(name):
            assigned = _value_of(module, name)
            return _text(*assigned) if assigned else ""
    return ""
