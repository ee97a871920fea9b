"""Imports go up the flow only: from text to tokens, windows, a model, a run, a command."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lmkit

PACKAGE = Path(lmkit.__file__).parent
# These import nothing, and everybody may import them.
LEAVES = {"errors", "overrides", "ranges", "metrics"}
STAGES = {"corpus", "tokenizer", "store", "windows", "model", "head"}
# What each package, or module beside them, may import, but for LEAVES.
ALLOWED = {
    "system": set(),
    "kernels": set(),
    "optim": set(),
    "corpus": {"system"},
    "tokenizer": {"system"},
    "run": {"system"},
    "ngrams": set(),
    "model": {"kernels", "ngrams"},
    "head": {"model", "kernels"},
    "regularizers": {"model"},
    "store": {"corpus", "tokenizer", "system"},
    "windows": {"store", "tokenizer", "corpus"},
    "config": {"run", "kernels", "system"},  # stages are reached by name alone
    "assembly": {"config", *STAGES},
    "inference": {"assembly", "kernels", "run", "system", *STAGES},
    "suite": {"inference", "run", "corpus", "tokenizer", "windows", "model", "system"},
    "training": {
        *{"inference", "assembly", "config", "run", "system"},
        *{"windows", "head", "model", "regularizers", "optim", "kernels", "store", "tokenizer"},
    },
    "sweep": {"assembly", "config", "run", "system"},
    "foreign": {"tokenizer", "ngrams", "system"},
    "export": {"inference", "windows", "head", "model", "ngrams", "tokenizer", "run", "system"},
    "pages": {"inference", "run", "system"},
    "analysis": {"inference", "assembly", "config", "store", "tokenizer", "corpus", "model"},
    "recipes": {"inference", "assembly", "config", "run", "store", "windows", "system"},
    "cluster": {"assembly", "store", "config"},
    "commands": {
        *{
            "analysis",
            "pages",
            "recipes",
            "sweep",
            "training",
            "inference",
            "assembly",
            "config",
            "run",
        },
        *{"foreign", "export", "kernels", "system", "corpus", "tokenizer", "store", "windows"},
        "suite",
    },
    "command": {"system"},
    "overview": {"config"},
    "usage": {"overview", "config"},
    "invoke": {"command", "overview", "sweep", "config", "run", "system"},
    "cli": {"invoke", "command", "commands", "overview", "usage", "config", "system"},
    "__main__": {"cli", "system"},
    "__init__": {"inference", "config", "run"},
}
FILES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
}
MODULES = sorted(FILES)


def imports(module: str) -> set[str]:
    """The modules of lmkit that a module names in an import, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            first, _, rest = (node.module or "").partition(".")
            if first == "lmkit":
                names = {f"{rest}.{alias.name}".strip(".") for alias in node.names}
                found |= {name if name in FILES else rest for name in names}
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("lmkit.")}
    return found


def package(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_a_package_imports_what_it_may(module):
    allowed = ALLOWED.get(package(module), set()) | LEAVES | {package(module)}
    assert {package(name) for name in imports(module)} <= allowed


def test_every_package_has_its_row_and_needs_what_it_says():
    used: dict[str, set[str]] = {name: set() for name in {*map(package, MODULES)} - LEAVES}
    for module in set(MODULES) - LEAVES:
        names = {*map(package, imports(module))}
        used[package(module)] |= names - LEAVES - {package(module)}
    assert used == ALLOWED


def test_nothing_imports_in_a_circle():
    modules = {module: imports(module) - {"", module} for module in MODULES if module != "__init__"}
    packages: dict[str, set[str]] = {}
    for module, names in modules.items():
        packages.setdefault(package(module), set()).update(
            package(name) for name in names if package(name) != package(module)
        )
    for graph in (modules, packages):
        TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_is_for(module):
    assert ast.get_docstring(ast.parse(FILES[module].read_text(encoding="utf-8")))


def test_what_is_private_of_lightnings_loops_lies_in_one_file():
    touching = [m for m in MODULES if "loop._" in FILES[m].read_text(encoding="utf-8")]
    assert touching == ["training.fit_loop"]


def test_transformers_is_imported_only_for_those_who_ask():
    """Lightning's torchmetrics imports it where it is installed; lmkit's own commands do not."""

    def roots(module):
        for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                yield (node.module or "").partition(".")[0]
            elif isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)

    asking = {module for module in MODULES if "transformers" in roots(module)}
    assert asking == {"export.modeling_lmkit", "export.registered"}
    assert not [m for m in set(MODULES) - asking if imports(m) & asking]
