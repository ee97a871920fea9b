"""The token store of a split: its shards as one array of tokens and one list of documents."""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import operator
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lmkit.store.meter import metered
from lmkit.store.shard import MANIFEST, NOT_ONE, Shard, as_json, check_increasing, damaged, writing
from lmkit.system.files import write_atomically
from lmkit.system.regular_file import MAX_MANIFEST, read_bytes
from lmkit.tokenizer import Tokenizer

FORMAT = "lmkit split 1"
# Files of tokens that are mapped at a time: each needs a descriptor, and 1024 is a common limit.
NUM_MAPPED = 128
COUNTED_AT_ONCE = 2**22
COUNTED_UNSEEN = 2**28  # tokens, of which the counting takes seconds


class Part(Protocol):
    """One of the files of a split, such as a shard; num_bytes and num_lines are 0 if unknown.

    by_line: each line was encoded by itself.
    """

    dtype: np.dtype[Any]
    num_tokens: int
    num_documents: int
    num_lines: int
    num_bytes: int
    num_unknown: int
    vocabulary_size: int
    by_line: bool

    def map(self, name: str) -> npt.NDArray[Any]: ...
    def document_id(self, index: int) -> str: ...


class JoinedTokens:
    """The tokens of several parts as one array, which reads only the elements asked for."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.dtype = parts[0].dtype
        self._ends = np.cumsum([part.num_tokens for part in parts])
        self._starts = self._ends - [part.num_tokens for part in parts]
        self._map: Callable[[int], npt.NDArray[Any]] = functools.lru_cache(NUM_MAPPED)(
            lambda k: np.asarray(parts[k].map("tokens"))
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def shape(self) -> tuple[int]:
        return (len(self),)

    def take(self, indices: npt.ArrayLike, *, mode: Literal["clip"]) -> npt.NDArray[Any]:
        """The tokens at `indices`, of any shape; indices are clipped to the ends."""
        positions = np.clip(indices, 0, len(self) - 1)
        part = np.searchsorted(self._ends, positions, side="right")
        tokens = np.empty(positions.shape, self.dtype)
        for k in np.unique(part).tolist():
            here = part == k
            tokens[here] = self._map(k).take(positions[here] - self._starts[k])
        return tokens

    def __getitem__(self, key: slice | int) -> Any:
        """A token, or a copy of the tokens of a slice."""
        if not isinstance(key, slice):
            index = range(len(self))[operator.index(key)]
            return self.take(index, mode="clip")[()]
        start, stop, step = key.indices(len(self))
        if step != 1:
            return self.take(np.arange(start, stop, step), mode="clip")
        runs = [np.empty(0, self.dtype)]
        first = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            end = min(int(self._ends[first]), stop)
            offset = int(self._starts[first])
            runs.append(self._map(first)[start - offset : end - offset])
            start, first = end, first + 1
        return np.concatenate(runs)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype)

    def release(self) -> None:
        """Unmap the files."""
        self._map.cache_clear()  # type: ignore[attr-defined]


class TokenStore:
    """The tokens of one split, read only.

    tokens: (num_tokens,) uint16 or uint32; a memory map, or `JoinedTokens` of several shards.
    document_ends: (num_documents,) and line_ends: (num_lines,), uint64 exclusive token positions.
    document_bytes: (num_documents,) uint64, of each text in UTF-8. sha256: of all its content.
    """

    def __init__(self, directory: Path, parts: Sequence[Part], sha256: str) -> None:
        self.directory = directory
        self.parts = parts
        self.sha256 = sha256
        self.num_tokens = sum(part.num_tokens for part in parts)
        self.num_documents = sum(part.num_documents for part in parts)
        self.num_lines = sum(part.num_lines for part in parts)
        self.num_bytes = sum(part.num_bytes for part in parts)
        self.num_unknown = sum(part.num_unknown for part in parts)
        self.by_line = any(part.by_line for part in parts)
        self.vocabulary_size = parts[0].vocabulary_size
        self.tokens: Any = JoinedTokens(parts) if len(parts) > 1 else parts[0].map("tokens")

    @classmethod
    def open(cls, directory: Path, verify: bool = False) -> TokenStore:
        """Open a store after checking the sizes of its files, or with `verify` all their bytes."""
        directory = Path(directory)
        manifest = read_split(directory)
        recorded = [record["sha256"] for record in manifest["shards"]]
        paths = [directory / shard_name(k) for k in range(len(recorded))]
        with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
            shards = list(pool.map(partial(Shard.open, verify=verify), paths))
        for shard, sha256 in zip(shards, recorded, strict=True):
            if shard.sha256 != sha256:
                raise damaged(shard.directory / MANIFEST, "a shard of another preparation")
            shard.check_ends()
        store = cls(directory, shards, hashlib.sha256(as_json(manifest)).hexdigest())
        if manifest != (expected := _split_manifest(shards)):
            wrong = next(key for key in expected if manifest.get(key) != expected[key])
            raise damaged(directory / MANIFEST, f"another {wrong} than its shards have")
        return store

    @cached_property
    def document_ends(self) -> npt.NDArray[Any]:
        return self._positions("document_ends")

    @cached_property
    def line_ends(self) -> npt.NDArray[Any]:
        ends = self._positions("line_ends")
        check_increasing(ends, self.directory)
        return ends

    @cached_property
    def document_bytes(self) -> npt.NDArray[Any]:
        return self._positions("document_bytes", shifted=False)

    def _positions(self, name: str, shifted: bool = True) -> npt.NDArray[Any]:
        if len(self.parts) == 1:
            return self.parts[0].map(name)
        joined, num_tokens = [], 0
        for part in self.parts:
            joined.append(np.array(part.map(name)))  # a copy, so that the file can be closed
            joined[-1] += np.uint64(num_tokens if shifted else 0)
            num_tokens += part.num_tokens
        return np.concatenate(joined)

    @cached_property
    def token_counts(self) -> npt.NDArray[np.int64]:
        """How often each token occurs, (vocabulary_size,), by one reading of the whole split."""
        counts = np.zeros(self.vocabulary_size, np.int64)
        with metered("counting tokens", "tokens", self.num_tokens > COUNTED_UNSEEN) as meter:
            for begin in range(0, self.num_tokens, COUNTED_AT_ONCE):
                tokens = self.tokens[begin : begin + COUNTED_AT_ONCE]
                counts += np.bincount(tokens, minlength=self.vocabulary_size)
                meter.advance(len(tokens))
        self.release()
        return counts

    def document_id(self, index: int) -> str:
        """The source's name of a document."""
        ends = list(accumulate(part.num_documents for part in self.parts))
        k = int(np.searchsorted(ends, index, side="right"))
        return self.parts[k].document_id(index - (ends[k] - self.parts[k].num_documents))

    def release(self) -> None:
        """Free the memory of the pages read so far; they are mapped again when read."""
        if isinstance(self.tokens, JoinedTokens):
            self.tokens.release()
        for array in vars(self).values():
            if isinstance(array, np.memmap):
                array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def shard_name(index: int) -> str:
    """The name of a shard's directory within its split's."""
    return f"{index:05d}"


def read_split(directory: Path) -> dict[str, Any]:
    """The manifest of a store; raises UserError if it is damaged."""
    path = directory / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(read_bytes(path, MAX_MANIFEST))
        if manifest["format"] != FORMAT or not manifest["shards"]:
            raise ValueError(f"not of the format {FORMAT!r}")
        if not all(isinstance(record["sha256"], str) for record in manifest["shards"]):
            raise ValueError("its shards have no hashes")
    except NOT_ONE as error:
        raise damaged(path, f"not a whole manifest ({error!r})") from None
    return manifest


def write_split(directory: Path, shards: Sequence[Shard]) -> None:
    """Write the manifest that makes a directory of whole shards a store."""
    manifest = _split_manifest(shards)
    with writing(directory):
        write_atomically(directory / MANIFEST, as_json(manifest))


def _split_manifest(shards: Sequence[Shard]) -> dict[str, Any]:
    first = shards[0]
    for shard in shards:
        if shard.tokenizer != first.tokenizer or shard.vocabulary_size != first.vocabulary_size:
            raise damaged(shard.directory / MANIFEST, "a shard of another tokenizer")
    counts = ("num_tokens", "num_documents", "num_lines", "num_bytes", "num_unknown")
    return {
        "format": FORMAT,
        "tokenizer": first.tokenizer,
        "vocabulary_size": first.vocabulary_size,
        "dtype": first.dtype.str,
        **{name: sum(getattr(shard, name) for shard in shards) for name in counts},
        "shards": [{"sha256": shard.sha256, "num_tokens": shard.num_tokens} for shard in shards],
    }


class Mixed(NamedTuple):
    """Several stores that are mixed in training.

    weights: the share of each. epoch_tokens: about the tokens of an epoch; None: an epoch ends when
    the first of the stores has been read once.
    """

    stores: Sequence[TokenStore]
    weights: Sequence[float]
    epoch_tokens: int | None


@dataclass(frozen=True)
class Prepared:
    """Data ready for training: a trained tokenizer and a store for each split.

    hash: of all of them together. source: the source's description. made: of each split that was
    encoded just now rather than found, the number of tokens and the seconds. mixed: the stores that
    training reads instead of the train store, if there are several.
    """

    tokenizer: Tokenizer
    stores: dict[str, TokenStore]
    directory: Path
    hash: str
    source: dict[str, object]
    made: dict[str, tuple[int, float]]
    mixed: Mixed | None = None

    def token_counts(self) -> npt.NDArray[np.float64]:
        """How often each token occurs in the train split, (vocabulary,); in a mixture, how often it
        would in as many tokens of it."""
        if self.mixed is None:
            return self.stores["train"].token_counts.astype(np.float64)
        shares = np.array(self.mixed.weights) / sum(self.mixed.weights)
        num_tokens = sum(store.num_tokens for store in self.mixed.stores)
        counts = [store.token_counts / store.num_tokens for store in self.mixed.stores]
        return num_tokens * (shares[:, None] * counts).sum(0)

    def describe(self) -> dict[str, Any]:
        """Plain values, for `data.json`."""
        counts = ("num_documents", "num_lines", "num_tokens", "num_unknown", "num_bytes", "sha256")
        return {
            "source": self.source,
            "store": self.hash,
            "tokenizer": self.tokenizer.hash(),
            "vocabulary_size": self.tokenizer.vocabulary_size,
            "splits": {
                split: {name: getattr(store, name) for name in counts}
                for split, store in self.stores.items()
            },
        }
