"""Documents to stores, once for each source and tokenizer; every later run opens the result."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lmkit.encoding import FILE, Encoded, Tokenizer, in_batches
from lmkit.errors import UserError
from lmkit.source import Source
from lmkit.token_store import TokenStore, write_store, writing
from lmkit.tokenizer import load_tokenizer

__all__ = ["Prepared", "TokenStore", "prepare", "write_store"]

log = logging.getLogger(__name__)

# Part of every cache key: raise it when the same text gives other tokens or files.
_FORMAT = 1
Made = TypeVar("Made")
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Prepared:
    """A trained tokenizer, a store for each split, their common hash, the source described."""

    tokenizer: Tokenizer
    stores: dict[str, TokenStore]
    directory: Path
    hash: str
    source: dict[str, object]


def prepare(
    source: Source,
    tokenizer: Tokenizer,
    cache: Path,
    *,
    splits: Sequence[str] | None = None,
    trained: bool = False,
    progress: bool = True,
) -> Prepared:
    """Train the tokenizer on the train split unless it is `trained`, encode the splits, cache both.

    The result's tokenizer is the one to use: the one given is left untrained where the cache
    holds its like. splits: all of the source's unless given.
    """
    wanted = tuple(source.splits if splits is None else splits)
    untrained = tokenizer.trainable and not trained
    for split in (*wanted, "train") if untrained else wanted:
        if split not in source.splits:
            need = " (the tokenizer is trained on train)" if split not in wanted else ""
            raise UserError(
                f"the source has no split {split!r}{need}: it has {', '.join(source.splits)}"
            )
    cache = Path(cache)
    if untrained:
        tokenizer = _trained(source, tokenizer, cache, progress)
    sha256 = tokenizer.hash()
    directory = cache / _key(source.fingerprint(), sha256)

    def encoded(split: str) -> TokenStore:
        def make(new: Path) -> None:
            with _meter(f"encoding {split}", "tokens", progress) as advance:
                write_store(new, _encoded(source, split, tokenizer, advance), tokenizer)

        return _once(directory / split, _verified, make)

    stores = {split: encoded(split) for split in wanted}
    hashes = [sha256, *(f"{split} {store.sha256}" for split, store in stores.items())]
    return Prepared(tokenizer, stores, directory, _key(*hashes), source.describe())


def _trained(source: Source, tokenizer: Tokenizer, cache: Path, progress: bool) -> Tokenizer:
    settings = json.dumps(tokenizer.settings(), sort_keys=True)
    target = cache / _key(source.fingerprint(), tokenizer.name, settings) / "tokenizer"

    def load(directory: Path) -> Tokenizer:
        loaded = load_tokenizer(directory)
        expected = (directory / "sha256").read_text() if (directory / "sha256").exists() else ""
        if loaded.hash() != expected:
            raise UserError(
                f"{directory / FILE}: the tokenizer is damaged: found SHA-256 {loaded.hash()}, "
                f"expected {expected or 'a file sha256'}"
            )
        return loaded

    def make(directory: Path) -> None:
        with _meter(f"training the {tokenizer.name} tokenizer", "characters", progress) as advance:

            def texts() -> Iterator[str]:
                for document in source.documents("train"):
                    advance(len(document.text))
                    yield document.text

            tokenizer.train(texts())
        with writing(directory):
            tokenizer.save(directory)
            (directory / "sha256").write_text(tokenizer.hash())

    return _once(target, load, make)


def _encoded(
    source: Source, split: str, tokenizer: Tokenizer, advance: Advance
) -> Iterator[tuple[list[str], Encoded]]:
    num_documents = num_tokens = num_unknown = 0
    for batch in in_batches(source.documents(split), lambda document: len(document.text)):
        encoded = tokenizer.encode([document.text for document in batch])
        advance(len(encoded.ids))
        num_documents += len(batch)
        num_tokens += len(encoded.ids)
        num_unknown += encoded.num_unknown
        yield [document.id for document in batch], encoded
    if not num_documents:
        raise UserError(
            f"split {split!r} of {type(source).__name__} is empty: no document, no token; "
            "name text that has words"
        )
    log.info(
        "%s: %d tokens (%d unknown) in %d documents", split, num_tokens, num_unknown, num_documents
    )


def _verified(directory: Path) -> TokenStore:
    return TokenStore.open(directory, verify=True)


def _once(target: Path, find: Callable[[Path], Made], make: Callable[[Path], None]) -> Made:
    """What `find` finds in `target`, after `make` if there is nothing whole: by one process.

    `make` fills a temporary directory, which then becomes `target` in one rename.
    """
    with contextlib.suppress(UserError):  # what is damaged is seen to under the lock
        if target.exists():
            return find(target)
    with _locked(target):
        if target.exists():
            try:
                return find(target)
            except UserError as error:
                aside = target.with_name(f"{target.name}.damaged")
                log.warning("%s\nsetting it aside as %s and preparing it again", error, aside)
                with writing(target):
                    shutil.rmtree(aside, ignore_errors=True)
                    target.rename(aside)
        new = target.with_name(f"{target.name}.tmp")  # of ours, or left by a process that died
        try:
            with writing(target):
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir()
            make(new)
            with writing(target):
                _sync(new)
                new.rename(target)
                _sync(target.parent)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return find(target)


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold `target` against other processes; the system lets go of it when this one dies."""
    with contextlib.ExitStack() as stack:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(target.with_name(f"{target.name}.lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("%s: another process prepares it; waiting", target)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join((str(_FORMAT), *parts)).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _meter(label: str, unit: str, shown: bool) -> Iterator[Advance]:
    """How much is done and how fast, on stderr where a person watches it."""
    if not (shown and sys.stderr.isatty()):
        yield lambda amount: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    columns = TextColumn(
        f"{{task.description}}: {{task.completed:,.0f}} {unit}, {{task.fields[rate]:,.0f}} {unit}/s"
    )
    with Progress(SpinnerColumn(), columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None, rate=0.0)

        def advance(amount: int) -> None:
            state = bar.tasks[task]
            done, elapsed = state.completed + amount, state.elapsed or 0.0
            bar.update(task, completed=done, rate=done / elapsed if elapsed else 0.0)

        yield advance
