"""Imports go up the flow only: from text to tokens, windows, a model, a run, a command."""

import ast
from pathlib import Path

import pytest

import lmkit

PACKAGE = Path(lmkit.__file__).parent
# A module may import those before it, never those after it.
FLOW = """
    errors regular_file atomic ranges redaction renamed hardware threads allocator signals processes
    rendezvous environment
    pydocs bounds paths readers records probe_corpus source hub files corpus
    encoding word subword tokenizer
    meter pool shard once token_store vocabulary stored datatrove_tokens store
    windows lanes mixture datamodule
    kernels.library kernels kernels.matmul kernels.lstm kernels.softmax
    model.state model.embedding model.dropout model.base model.reader model.layer model.recurrent
    model.lstm model.gru model.elman model.fixed_window model
    cross_entropy head metrics optim regularizers task
    history run checkpoint_io identity checkpoint guard watchdog
    wandb_logger logs tracker wandb_tracker tensorboard_tracker pace progress continuation
    groups allow keys as_typed config search signatures full_config binding safety loggers trainer
    trainer_keys contradictions dry_run check assembly
    sampling text trained probe limits training estimate workers launch job multirun
    prepare cluster
    evaluate score_page score generate analyze watch dashboard verify doctor list
    study trial sweep_report sweep completion usage
    cli __main__
""".split()  # noqa: SIM905 - a line is a stage
FILES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
    if file != PACKAGE / "__init__.py"
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


def test_every_module_has_its_place_in_the_flow():
    assert sorted(FLOW) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_up_the_flow(module):
    assert imports(module) <= set(FLOW[: FLOW.index(module)])


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_is_for(module):
    assert ast.get_docstring(ast.parse(FILES[module].read_text(encoding="utf-8")))
