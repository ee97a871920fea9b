"""A counted n-gram model as an ARPA file, for KenLM, SRILM, Kaldi and others."""

from __future__ import annotations

import gzip
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lmkit.errors import UserError
from lmkit.head import NGramTables
from lmkit.inference import TrainedModel
from lmkit.model import NGram
from lmkit.ngrams import END, START, Tables
from lmkit.system.files import atomically
from lmkit.tokenizer import Word

log = logging.getLogger(__name__)

NEVER = -99.0  # log10 of the probability of <s>, as SRILM writes it
DIGITS = 9  # which tell every float32 from all others
CHUNK = 2**18  # lines that are written at a time


def check_arpa(trained: TrainedModel, path: Path) -> None:
    """Raise UserError if the model cannot be an ARPA file, or if something is at `path`."""
    if not (type(trained.model) is NGram and type(trained.head) is NGramTables):
        raise UserError(
            f"format=arpa is for n-grams, and the model is {type(trained.model).__name__}: give "
            "another format"
        )
    tokenizer = trained.tokenizer
    if not isinstance(tokenizer, Word):
        raise UserError(
            f"format=arpa holds words between spaces, and the run has the tokens of the "
            f"{tokenizer.name} tokenizer: train with tokenizer=word"
        )
    if taken := [word for word in (START, END) if word in tokenizer.vocabulary]:
        raise UserError(
            f"format=arpa: the text has the word {taken[0]}, which in such a file is an end of a "
            "sentence; train on a text without it"
        )
    if path.exists():
        raise UserError(f"path={path} is there already: give another")
    if not path.parent.is_dir():
        raise UserError(f"path={path}: there is no directory {path.parent}")


def write_arpa(trained: TrainedModel, path: Path) -> list[int]:
    """Write the file `path`, compressed if its name ends with .gz, whole or not at all; returns the
    number of n-grams of each order.

    `<eos>` is </s>, and what stands before the first token of a text <s>. Numbers have so many
    digits that `lmkit import` reads them back to the last bit.
    """
    check_arpa(trained, path)
    model, tokenizer = trained.model, trained.tokenizer
    assert isinstance(model, NGram)
    assert isinstance(tokenizer, Word)
    if int(model.start) < 0:
        log.warning("counted as one stream: no n-gram begins with <s>, as no text does")
    state = {name: each.cpu() for name, each in trained.head.state_dict().items()}
    tables = Tables.of(state, tokenizer.vocabulary_size)
    words = [END if i == tokenizer.eos_id else w for i, w in enumerate(tokenizer.vocabulary)]
    with atomically(path) as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
                packed.writelines(_lines(tables, [*words, START]))
        else:
            file.writelines(_lines(tables, [*words, START]))
    return tables.sizes


def _lines(tables: Tables, words: list[str]) -> Iterator[bytes]:
    """The file, in pieces. words: by symbol."""
    spellings = pa.array(words)
    counts = (f"ngram {order}={size}\n" for order, size in enumerate(tables.sizes, start=1))
    yield f"\\data\\\n{''.join(counts)}".encode()
    for order, size in enumerate(tables.sizes, start=1):
        yield f"\n\\{order}-grams:\n".encode()
        for begin in range(0, size, CHUNK):
            part = slice(begin, min(begin + CHUNK, size))
            symbols = tables.spelled(order, part.start, part.stop)
            columns = [spellings.take(pa.array(column)) for column in symbols.T]
            log_prob = tables.log_prob[order - 1][part]
            fields = [_decimals(log_prob), pc.binary_join_element_wise(*columns, " ")]
            if len(log_prob) < len(symbols):  # <s>, the last unigram
                fields[0] = pa.array([*fields[0].to_pylist(), f"{NEVER:g}"])
            if order < tables.order:
                fields.append(_decimals(tables.log_backoff[order - 1][part]))
            lines = pc.binary_join_element_wise(*fields, "\t")
            yield "".join(f"{line}\n" for line in lines.to_pylist()).encode()
    yield b"\n\\end\\\n"


def _decimals(nats: npt.NDArray[np.float32]) -> Any:
    """Logarithms to the base of 10 as an array of strings, of natural ones."""
    value = nats.astype(np.float64) / math.log(10)
    digits = np.floor(np.log10(np.abs(value), out=np.zeros(len(value)), where=value != 0))
    scale = 10.0 ** np.minimum(DIGITS - 1 - digits, 300)
    return pc.cast(pa.array(np.round(value * scale) / scale), pa.string())
