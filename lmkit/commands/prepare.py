"""`lmkit prepare`: encodes text into stores in several processes, for later trainings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmkit.assembly import text_and_tokenizer
from lmkit.corpus.source import SPLITS
from lmkit.errors import UserError
from lmkit.overrides import key_of
from lmkit.store import Prepared, Store, TokenStore
from lmkit.store import prepare as prepare_stores
from lmkit.store.pool import num_cores
from lmkit.store.prepared import DATA
from lmkit.store.shard import MANIFEST, damaged
from lmkit.system.files import write_atomically
from lmkit.tokenizer import load_tokenizer
from lmkit.tokenizer.base import FILE


def prepare(
    config: Mapping[str, Any],
    overrides: Sequence[str],
    *,
    store: str | None = None,
    workers: int | None = None,
    verify: bool = False,
) -> dict[str, Any]:
    """Encode a text in several processes, going on where an earlier command was killed.

        lmkit prepare data=files data.path=texts store=prepared
        lmkit prepare store=prepared verify=true

    store: a directory of its own for the tokens, to train from with data=store data.path=DIR;
    without it they go where lmkit train will look for them.
    workers: processes, as many as there are cores unless given.
    verify: read again all that store=DIR holds, and say what is damaged.
    config: data, tokenizer and outputs are used
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers}: must be at least 1")
    if verify:
        if store is None:
            raise UserError("verify=true: name the directory too, with store=DIR")
        return _verify(Path(store).expanduser())
    source, tokenizer = text_and_tokenizer(config)
    workers = num_cores() if workers is None else workers
    directory = None if store is None else Path(store).expanduser().absolute()
    cache = Path(config["outputs"]) / ".cache"
    by_line = config["data"].get("protocol") == "sentence"
    prepared = prepare_stores(
        source, tokenizer, cache, workers=workers, store=directory, by_line=by_line
    )
    if directory:
        _write_data(directory, prepared)
    result = {
        "directory": str(prepared.directory),
        "workers": workers,
        **prepared.describe(),
    }
    for split, (num_tokens, seconds) in prepared.made.items():
        result["splits"][split] |= {
            "encoded_tokens": num_tokens,
            "seconds": seconds,
            "tokens_per_second": num_tokens / max(seconds, 1e-9),
        }
    _show(result, prepared, store, overrides)
    return result


def _write_data(directory: Path, prepared: Prepared) -> None:
    """Write the file with which a directory of stores can be trained from, as the last one."""
    text = json.dumps(prepared.describe(), indent=2) + "\n"
    write_atomically(directory / DATA, text.encode())


def _verify(directory: Path) -> dict[str, Any]:
    """Check all files of a directory of stores against the hashes that were written."""
    source = Store(str(directory))
    tokenizer = load_tokenizer(directory)
    if tokenizer.hash() != source.tokenizer_hash:
        raise UserError(
            f"{directory / FILE} is not the tokenizer that {directory / DATA} names: put it back, "
            "or make all anew with the command that prepared it"
        )
    source.check_splits()
    splits = {}
    for split in source.splits:
        store = TokenStore.open(directory / split, verify=True)
        if not source.is_recorded(split, store):
            raise UserError(
                f"{directory / split} is not the one that {directory / DATA} names: make it anew "
                "with the command that prepared it"
            )
        last = store.tokens.take(store.document_ends.astype("int64") - 1, mode="clip")
        if (last != tokenizer.eos_id).any() or store.vocabulary_size != tokenizer.vocabulary_size:
            raise damaged(directory / split / MANIFEST, "tokens that are not its tokenizer's")
        splits[split] = {"sha256": store.sha256, "num_tokens": store.num_tokens}
        print(f"{split}: {store.num_tokens:,} tokens in {len(store.parts)} shards, all as written")
    return {"directory": str(directory), "splits": splits}


def _show(
    result: Mapping[str, Any], prepared: Prepared, store: str | None, overrides: Sequence[str]
) -> None:
    table = Table(box=None)
    for column in ("", "documents", "tokens", "unknown", "bytes", "shards", "tokens/s"):
        table.add_column(column, justify="right" if column else "left")
    for split in (name for name in SPLITS if name in prepared.stores):
        opened, counts = prepared.stores[split], result["splits"][split]
        rate = counts.get("tokens_per_second")
        table.add_row(
            split,
            *(f"{counts[f'num_{name}']:,}" for name in ("documents", "tokens", "unknown", "bytes")),
            f"{len(opened.parts):,}",
            "was there" if rate is None else f"{rate:,.0f}",
        )
    console = Console()
    console.print(table)
    if store is None:
        keys = [each for each in overrides if key_of(each) != "workers"]
        command = shlex.join(["lmkit", "train", *keys])
    else:
        by_line = any(each.by_line for each in prepared.stores.values())
        protocol = ["data.protocol=sentence"] if by_line else []
        command = shlex.join(["lmkit", "train", "data=store", f"data.path={store}", *protocol])
    console.print(f"in {prepared.directory}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"to train: {command}", highlight=False, markup=False, soft_wrap=True)
