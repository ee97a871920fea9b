"""The tokenizer of a source, trained once on its train split."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from lmkit.corpus import Document, Source
from lmkit.errors import UserError
from lmkit.store.directories import make_once
from lmkit.store.meter import Advance, metered
from lmkit.store.pool import Job, jobs_of, run_jobs
from lmkit.store.shard import damaged, writing
from lmkit.store.token_store import shard_name
from lmkit.system.files import write_atomically
from lmkit.system.regular_file import opened, read_bytes
from lmkit.tokenizer import Tokenizer, load_tokenizer
from lmkit.tokenizer.base import FILE, CountedTokenizer, add_counts

COUNTS = "counts.json"


def trained_tokenizer(
    source: Source, tokenizer: Tokenizer, target: Path, workers: int, progress: bool
) -> Tokenizer:
    """The tokenizer saved in `target`; if there is none, one like `tokenizer` is trained first."""
    tokenizer = deepcopy(tokenizer)

    def make(directory: Path) -> None:
        counts = target.with_name("counts")
        if isinstance(tokenizer, CountedTokenizer) and len(source.pieces("train")) > 1:
            _count(source, tokenizer, counts, workers, progress)
        else:
            _read(source, tokenizer, progress)
        with writing(directory):
            tokenizer.save(directory)
            (directory / "sha256").write_text(tokenizer.hash())
        shutil.rmtree(counts, ignore_errors=True)

    return make_once(target, _load, make)


def _load(directory: Path) -> Tokenizer:
    loaded = load_tokenizer(directory)
    expected = ""
    with suppress(FileNotFoundError):
        expected = read_bytes(directory / "sha256").decode(errors="replace")
    if loaded.hash() != expected:
        raise UserError(
            f"{directory / FILE}: the tokenizer is damaged: found SHA-256 {loaded.hash()}, "
            f"expected {expected or 'a file sha256'}"
        )
    return loaded


def _read(source: Source, tokenizer: Tokenizer, progress: bool) -> None:
    with metered(f"training the {tokenizer.name} tokenizer", "characters", progress) as meter:
        tokenizer.train(_texts(source.documents("train"), meter.advance))


def _texts(documents: Iterable[Document], advance: Advance) -> Iterator[str]:
    for document in documents:
        advance(len(document.text))
        yield document.text


@dataclass(frozen=True)
class _Count:
    """Work that counts the words of a piece, into a directory that survives a kill."""

    source: Source
    tokenizer: CountedTokenizer
    directory: Path

    def __call__(self, job: Job, advance: Advance) -> None:
        def make(directory: Path) -> None:
            read: Counter[str] = Counter()
            documents = self.source.read("train", job.piece, read)
            counts = self.tokenizer.count(_texts(documents, advance))
            data = json.dumps([counts, read]).encode()
            sha256 = hashlib.sha256(data).hexdigest().encode()
            with writing(directory):
                write_atomically(directory / COUNTS, sha256 + b"\n" + data)

        make_once(self.directory / shard_name(job.index), _counts, make)


def _counts(directory: Path) -> tuple[dict[str, int], dict[str, int]]:
    """The counts of a piece: how often each word occurs, and how many documents were read."""
    try:
        with opened(directory / COUNTS) as file:
            sha256, _, data = file.read().partition(b"\n")
    except OSError as error:
        raise damaged(directory / COUNTS, f"{error.strerror}") from None
    if hashlib.sha256(data).hexdigest().encode() != sha256:
        raise damaged(directory / COUNTS, "not what was written")
    counts, read = json.loads(data)
    return counts, read


def _count(
    source: Source, tokenizer: CountedTokenizer, directory: Path, workers: int, progress: bool
) -> None:
    """Train a tokenizer on the counts of the pieces, added up in order: the result is the same as
    from the whole text."""
    jobs = jobs_of(source, "train", "the counts of piece")
    label = f"training the {tokenizer.name} tokenizer"
    with metered(label, "characters", progress, sum(job.num_bytes for job in jobs)) as meter:
        run_jobs(_Count(source, tokenizer, directory), jobs, workers, meter)
    total: dict[str, int] = {}
    documents: Counter[str] = Counter()
    for job in jobs:
        counts, read = _counts(directory / shard_name(job.index))
        add_counts(total, counts)
        documents.update(read)
    source.check_counts("train", documents)
    tokenizer.learn(total)
