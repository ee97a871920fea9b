"""Reads n-gram models of other programs: ARPA files of KenLM, SRILM, MITLM and others."""

from __future__ import annotations

import gzip
import logging
import math
import re
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmkit.errors import UserError
from lmkit.ngrams import END, START, Tables
from lmkit.system.regular_file import opened
from lmkit.tokenizer import Word
from lmkit.tokenizer.word import EOS, UNK
from lmkit.tokenizer.word_list import UNKNOWNS

log = logging.getLogger(__name__)

GZIP = b"\x1f\x8b"
SEEN = 4096  # bytes in which a file says what it is
MAX_LINE = 1 << 20  # bytes
MAX_ORDER = 7
MISSING = -100.0  # log10 p(<unk>) where a file has none, as KenLM has it
COUNT = re.compile(rb"ngram\s+(\d+)\s*=\s*(\d+)")
SECTION = re.compile(rb"\\(\d+)-grams:")


@dataclass(frozen=True)
class Arpa:
    """An n-gram model of a file. weights: of lmkit's model and head, by their names."""

    order: int
    tokenizer: Word
    weights: dict[str, Tensor]
    sizes: list[int]


def is_arpa(path: Path) -> bool:
    """Whether a file begins as an ARPA file does, compressed or not."""
    try:
        with _lines_of(path) as file:
            return rb"\data" in file.read(SEEN)
    except (OSError, UserError):  # whoever reads it as something else says what is wrong
        return False


@contextmanager
def _lines_of(path: Path) -> Iterator[BinaryIO]:
    with opened(path) as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        if not packed:
            yield file
            return
        try:
            with gzip.open(file) as unpacked:
                yield cast(BinaryIO, unpacked)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path} is damaged: it cannot be decompressed: {error}") from None


class _Section(NamedTuple):
    """The n-grams of an order as they stand in the file: symbols (n-grams, order), log10 values."""

    symbols: npt.NDArray[np.int32]
    log_prob: npt.NDArray[np.float64]
    log_backoff: npt.NDArray[np.float64]


class _Reader:
    """Reads a file line by line; errors name the line."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.number = 0
        self.line = b""
        self.words: dict[bytes, int] = {}

    def wrong(self, what: str) -> NoReturn:
        raise UserError(f"{self.path}, line {self.number:,}: {what}")

    def next(self) -> bytes:
        """The next line, without spaces around it."""
        self.line = self.file.readline(MAX_LINE + 1)
        self.number += 1
        if not self.line:
            self.wrong(r"the file ends here, without \end\: it is not whole")
        if len(self.line) > MAX_LINE:
            self.wrong(f"more than {MAX_LINE:,} bytes")
        return self.line.strip()

    def next_filled(self) -> bytes:
        """The next line that is not blank."""
        while not (line := self.next()):
            pass
        return line

    def counts(self) -> list[int]:
        r"""The number of n-grams of each order, from \data\ to the line of the first section."""
        while self.next() != rb"\data" + b"\\":
            pass
        counts: list[int] = []
        while match := COUNT.fullmatch(line := self.next_filled()):
            if int(match[1]) != len(counts) + 1:
                self.wrong(f"expected the count of order {len(counts) + 1}")
            counts.append(int(match[2]))
        if not counts or not SECTION.fullmatch(line):
            self.wrong(r"expected ngram ORDER=COUNT, or \1-grams:")
        if len(counts) > MAX_ORDER:
            self.wrong(f"n-grams of order {len(counts)}, and lmkit has them up to {MAX_ORDER}")
        return counts

    def section(self, order: int, count: int) -> _Section:
        """The n-grams of an order, after its heading, up to the next one."""
        match = SECTION.fullmatch(self.line.strip())
        if not match or int(match[1]) != order:
            self.wrong(rf"expected \{order}-grams:")
        symbols, log_prob, log_backoff = array("i"), array("d"), array("d")
        while not (line := self.next_filled()).startswith(b"\\") or len(line.split()) > order:
            fields = line.split()
            if not order < len(fields) < order + 3:
                self.wrong(
                    f"expected a logarithm, {order} words and a backoff weight at most, found "
                    f"{len(fields)} fields"
                )
            words = fields[1 : order + 1]
            try:
                log_prob.append(float(fields[0]))
                log_backoff.append(float(fields[-1]) if len(fields) > order + 1 else 0.0)
            except ValueError:
                self.wrong("expected a number before and after the words")
            if order == 1:
                if words[0] in self.words:
                    self.wrong(f"the word {words[0].decode(errors='replace')} a second time")
                self.words[words[0]] = len(self.words)
            try:
                symbols.extend([self.words[word] for word in words])
            except KeyError as missing:
                word = missing.args[0].decode(errors="replace")
                self.wrong(f"the word {word}, which is not among the 1-grams")
        if len(log_prob) != count:
            self.wrong(f"{len(log_prob):,} {order}-grams, where the file announces {count:,}")
        numbers = np.frombuffer(log_prob), np.frombuffer(log_backoff)
        if not all(np.isfinite(each).all() for each in numbers):
            self.wrong(f"the {order}-grams have numbers that are not finite")
        return _Section(np.frombuffer(symbols, np.int32).reshape(-1, order), *numbers)


def read_arpa(path: Path) -> Arpa:
    """The model in an ARPA file, which may be compressed; raises UserError for a damaged one.

    </s> becomes <eos>, and <s> what stands before the first token of a text; unknown words are
    <unk>. In a file without <unk> it has the probability that KenLM gives it.
    """
    with _lines_of(path) as file:
        reader = _Reader(path, file)
        counts = reader.counts()
        sections = [reader.section(n, count) for n, count in enumerate(counts, start=1)]
        if reader.line.strip() != rb"\end" + b"\\":
            reader.wrong(r"expected \end\ after the last n-grams")
    vocabulary, renamed = _vocabulary(path, reader.words)
    size = len(vocabulary)
    unigrams = sections[0]._replace(symbols=renamed[sections[0].symbols])
    log_prob, log_backoff = np.full(size + 1, MISSING), np.zeros(size + 1)
    log_prob[unigrams.symbols[:, 0]] = unigrams.log_prob
    log_backoff[unigrams.symbols[:, 0]] = unigrams.log_backoff
    tables = Tables(size, (), (_nats(log_prob[:size]),), (_nats(log_backoff),))
    for section in sections[1:]:
        tables = _with(path, tables, section._replace(symbols=renamed[section.symbols]))
    tables = Tables(size, tables.keys, tables.log_prob, tables.log_backoff[: len(counts) - 1])
    tokenizer = Word.of(vocabulary)
    begins = any((keys // tables.base == size).any() for keys in tables.keys[:1])
    weights = {f"head.{name}": tensor for name, tensor in tables.state().items()}
    weights["model.embedding.weight"] = torch.zeros(size, 0)
    weights["model.start"] = torch.tensor(tokenizer.eos_id if begins else -1)
    return Arpa(len(counts), tokenizer, weights, counts)


def _nats(log10: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return (log10 * math.log(10)).astype(np.float32)


def _vocabulary(path: Path, words: dict[bytes, int]) -> tuple[list[str], npt.NDArray[np.int32]]:
    """The tokens by id, and the symbol that each word of the file becomes."""
    try:
        spelled = [word.decode() for word in words]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the word {error.object!r} is not UTF-8") from None
    known = frozenset(spelled)
    if END not in known:
        raise UserError(f"{path} has no {END}, the word that ends a sentence")
    unk = next((word for word in UNKNOWNS if word in known), None)
    roles = {END: EOS, **({} if unk is None else {unk: UNK})}
    for word, role in roles.items():
        if word != role and role in known:
            raise UserError(f"{path} has both {word} and {role}, which are one token here")
    vocabulary = [roles.get(word, word) for word in spelled if word != START]
    if unk is None:
        log.warning("%s has no <unk>: unknown words have log10 p = %g, as in KenLM", path, MISSING)
        vocabulary.append(UNK)
    index = {word: i for i, word in enumerate(vocabulary)} | {START: len(vocabulary)}
    return vocabulary, np.array([index[roles.get(word, word)] for word in spelled], np.int32)


def _with(path: Path, tables: Tables, section: _Section) -> Tables:
    """The tables with one more order."""
    size, base, order = tables.vocabulary_size, tables.base, section.symbols.shape[1]
    usable = (section.symbols[:, 1:] != size).all(axis=1)
    if dropped := int((~usable).sum()):
        log.warning(
            "%s: %d %d-grams have <s> after another word, which never comes: they are left out",
            *(path, dropped, order),
        )
    symbols = section.symbols[usable].astype(np.int64)
    prefix = symbols[:, 0]
    for below, keys in enumerate(tables.keys, start=1):
        wanted = prefix * base + symbols[:, below]
        prefix = np.searchsorted(keys, wanted)
        there = np.append(keys, -1)[prefix] == wanted
        if not there.all():
            first = int(np.flatnonzero(~there)[0])
            raise UserError(
                f"{path}: the {order}-gram {first + 1:,} begins with {below + 1} words that are no "
                f"{below + 1}-gram of the file; have the other program write these too"
            )
    keys = prefix * base + symbols[:, -1]
    ranked = np.argsort(keys)
    if (np.diff(keys[ranked]) == 0).any():
        raise UserError(f"{path} has one of its {order}-grams twice")
    log_prob, log_backoff = (_nats(each[usable][ranked]) for each in section[1:])
    return Tables(
        size,
        (*tables.keys, keys[ranked]),
        (*tables.log_prob, log_prob),
        (*tables.log_backoff, log_backoff),
    )
