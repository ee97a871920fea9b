"""Encodes documents into stores, once per source and tokenizer; later runs open the result."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmkit.corpus import Corpus, Document, Source
from lmkit.corpus.source import TokenCount
from lmkit.errors import UserError
from lmkit.store.directories import locked, make_once, set_aside
from lmkit.store.meter import Advance, metered
from lmkit.store.pool import Job, jobs_of, num_cores, run_jobs
from lmkit.store.prepared import PLAN, PreparedSource
from lmkit.store.shard import MANIFEST, Shard, damaged, write_shard, writing
from lmkit.store.token_store import Prepared, TokenStore, read_split, shard_name, write_split
from lmkit.store.vocabulary import trained_tokenizer
from lmkit.system.files import write_atomically
from lmkit.system.regular_file import read_bytes
from lmkit.tokenizer import Encoded, Tokenizer, load_tokenizer
from lmkit.tokenizer.base import FILE, in_batches

log = logging.getLogger(__name__)

NO_TOKENIZER = (
    "tokenizer=stored: goes with data=store, whose tokens are made; for text name one with "
    "tokenizer.path=DIR"
)
# In every cache key: raise it when the same text comes to give other tokens or files.
_FORMAT = 2


def prepare(
    source: Corpus,
    tokenizer: Tokenizer | None,
    cache: Path,
    *,
    splits: Sequence[str] | None = None,
    progress: bool = True,
    workers: int | None = None,
    store: Path | None = None,
    by_line: bool = False,
) -> Prepared:
    """Train the tokenizer on the train split if it is untrained, encode the splits, and keep both.

    Use the tokenizer of the result: the argument is not changed. tokenizer: None where the source's
    tokens come with one. splits: by default all of the source's. workers: processes that encode, by
    default one per core. store: the directory of the shards, by default in the cache. by_line:
    encode each line of a document by itself, as protocol `sentence` reads them.
    """
    if isinstance(source, PreparedSource):
        return _as_read(source.prepared(tokenizer, Path(cache), splits), by_line)
    assert isinstance(source, Source)
    if tokenizer is None:
        raise UserError(NO_TOKENIZER)
    workers = num_cores() if workers is None else workers
    wanted = tuple(source.splits if splits is None else splits)
    encode = _encoder(source, tokenizer, Path(cache), wanted, progress, workers, store, by_line)
    directory = encode.directory
    stores = {split: opened for split in wanted if (opened := _find(directory / split))}
    made: dict[str, tuple[int, float]] = {}
    if len(stores) < len(wanted):
        with locked(directory / ".lock", directory):
            for split in wanted:
                whole = stores.get(split) or _find(directory / split, mend=True)
                stores[split] = whole or _make(encode, split, workers, progress, made)
        for remark in source.remarks({split: _counted(each) for split, each in stores.items()}):
            log.warning("%s", remark)
    stores = {split: stores[split] for split in wanted}
    sha256 = encode.tokenizer.hash()
    hashes = [sha256, *(f"{split} {each.sha256}" for split, each in stores.items())]
    return Prepared(encode.tokenizer, stores, directory, _key(*hashes), source.describe(), made)


def plan(
    source: Source,
    tokenizer: Tokenizer,
    cache: Path,
    *,
    workers: int,
    store: Path,
    by_line: bool = False,
) -> tuple[Encode, list[Job]]:
    """Do the work of `prepare` up to the tokenizer, and return the jobs that make the shards of all
    splits, for other processes to do.

    Afterwards `prepare` finds the shards and finishes the store.
    """
    splits = source.splits
    encode = _encoder(source, tokenizer, cache, splits, True, workers, store, by_line)
    return encode, [job for split in splits for job in jobs_of(source, split)]


def _encoder(
    source: Source,
    tokenizer: Tokenizer,
    cache: Path,
    splits: Sequence[str],
    progress: bool,
    workers: int,
    store: Path | None,
    by_line: bool,
) -> Encode:
    """The work that makes shards: with the tokenizer, trained if need be, and their directory."""
    untrained = not tokenizer.is_trained
    for split in (*splits, "train") if untrained else splits:
        if split not in source.splits:
            need = " (the tokenizer is trained on train)" if split not in splits else ""
            raise UserError(
                f"the source has no split {split!r}{need}: it has {', '.join(source.splits)}"
            )
    if untrained:
        settings = json.dumps(tokenizer.settings(), sort_keys=True)
        target = cache / _key(source.fingerprint(), tokenizer.kind(), settings) / "tokenizer"
        tokenizer = trained_tokenizer(source, tokenizer, target, workers, progress)
    by_line = by_line and not tokenizer.lines_alone
    how = ["by line"] if by_line else []
    if store:
        _claim(source, tokenizer, store, how)
        return Encode(source, tokenizer, store, by_line)
    key = _key(source.fingerprint(), tokenizer.hash(), str(source.piece_bytes), *how)
    return Encode(source, tokenizer, cache / key, by_line)


def _as_read(prepared: Prepared, by_line: bool) -> Prepared:
    """Refuse stores of documents that were encoded whole if lines are read, and vice versa."""
    by_line = by_line and not prepared.tokenizer.lines_alone
    for store in prepared.stores.values():
        if store.num_lines and any(part.by_line != by_line for part in store.parts):
            encoded, wanted = "as whole documents", "data.protocol=sentence reads lines"
            if store.by_line:
                encoded, wanted = "line by line", "only data.protocol=sentence reads lines"
            again = "with" if by_line else "without"
            raise UserError(
                f"{store.directory} was encoded {encoded}, but {wanted}: the tokens of a line of "
                f"the {prepared.tokenizer.name} tokenizer depend on what is around it; prepare the "
                f"text again {again} data.protocol=sentence"
            )
    return prepared


def _claim(source: Source, tokenizer: Tokenizer, directory: Path, how: Sequence[str]) -> None:
    """Save the tokenizer and the plan in a directory of shards; UserError if the directory belongs
    to another text or tokenizer."""
    record = {
        "format": _FORMAT,
        "fingerprint": source.fingerprint(),
        "tokenizer": tokenizer.hash(),
        "shards": {split: len(source.pieces(split)) for split in source.splits},
        **dict.fromkeys(how, True),
    }
    text = json.dumps(record, indent=1)
    with locked(directory / ".lock", directory), writing(directory):
        file = directory / PLAN
        if not file.exists():
            unfinished = set(directory.glob(f".{PLAN}.*.tmp"))
            if set(directory.iterdir()) - unfinished - {directory / ".lock"}:
                raise UserError(f"store={directory} holds other files: name a directory of its own")
            write_atomically(file, text.encode())
        elif read_bytes(file) != text.encode():
            raise UserError(
                f"store={directory} is of another text or tokenizer: name another directory, or "
                "delete it"
            )
        if not (directory / FILE).exists():
            tokenizer.save(directory)
        elif load_tokenizer(directory).hash() != record["tokenizer"]:
            raise UserError(
                f"{directory / FILE} is not the tokenizer that it was: delete {directory}"
            )


@dataclass(frozen=True)
class Encode:
    """Work that makes the shard of a job, exactly once whichever processes try."""

    source: Source
    tokenizer: Tokenizer
    directory: Path
    by_line: bool = False

    def directory_of(self, job: Job) -> Path:
        return self.directory / job.split / shard_name(job.index)

    def __call__(self, job: Job, advance: Advance) -> None:
        read: Counter[str] = Counter()

        def make(new: Path) -> None:
            documents = self.source.read(job.split, job.piece, read)
            batches = self._batches(documents, advance)
            write_shard(new, batches, self.tokenizer, read, by_line=self.by_line)

        make_once(self.directory_of(job), self._find, make)

    def _find(self, directory: Path) -> Shard:
        shard = Shard.open(directory, verify=True)
        if shard.tokenizer != self.tokenizer.hash():
            raise damaged(directory / MANIFEST, "a shard of another tokenizer")
        return shard

    def _batches(
        self, documents: Iterator[Document], advance: Advance
    ) -> Iterator[tuple[list[str], Encoded]]:
        for batch in in_batches(documents, lambda document: len(document.text)):
            encoded = self.tokenizer.encode([document.text for document in batch], self.by_line)
            advance(len(encoded.ids))
            yield [document.id for document in batch], encoded


def _find(directory: Path, mend: bool = False) -> TokenStore | None:
    """The store of a split if it is whole, else None; with `mend` a damaged manifest is set aside.

    `Encode` deals with damaged shards.
    """
    if not (directory / MANIFEST).exists():
        return None
    try:
        read_split(directory)
    except UserError as error:
        if mend:
            set_aside(directory / MANIFEST, error)
        return None
    with contextlib.suppress(UserError):
        return TokenStore.open(directory, verify=True)
    return None


def _make(
    encode: Encode, split: str, workers: int, progress: bool, made: dict[str, tuple[int, float]]
) -> TokenStore:
    """Make the missing shards of a split; `made` gets the encoded tokens and the seconds."""
    began = time.perf_counter()
    jobs = jobs_of(encode.source, split)
    num_bytes = sum(job.num_bytes for job in jobs)
    with metered(f"encoding {split}", "tokens", progress, num_bytes) as meter:
        run_jobs(encode, jobs, workers, meter)
    shards = [Shard.open(encode.directory_of(job)) for job in jobs]
    read: Counter[str] = Counter()
    for shard in shards:
        read.update(shard.read)
    encode.source.check_counts(split, read)
    write_split(encode.directory / split, shards)
    made[split] = (meter.amount, time.perf_counter() - began)
    store = TokenStore.open(encode.directory / split)
    log.info(
        "%s: %d tokens (%d unknown) in %d documents",
        *(split, store.num_tokens, store.num_unknown, store.num_documents),
    )
    if store.num_unknown > store.num_tokens / 2:
        log.warning(
            "%s: most of its tokens are unknown, so that what is measured on it says little; was "
            "the tokenizer made for this text, with all of its words (tokenizer.min_frequency)?",
            split,
        )
    return store


def _counted(store: TokenStore) -> TokenCount:
    lengths = np.diff(store.document_ends.astype(np.int64), prepend=0)
    longest = int(lengths.argmax())
    return TokenCount(store.num_tokens, store.document_id(longest), int(lengths[longest]))


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join((str(_FORMAT), *parts)).encode()).hexdigest()[:32]
