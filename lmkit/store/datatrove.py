"""Tokens that datatrove's DocumentTokenizer has written, read in place as a source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from lmkit.corpus import finding
from lmkit.errors import UserError
from lmkit.store.prepared import PreparedSource
from lmkit.store.token_store import Prepared, TokenStore
from lmkit.system.files import write_atomically
from lmkit.tokenizer import Tokenizer

SUFFIX = ".ds"
INSTEAD = "take data.protocol=document or stream, or prepare the text with lmkit prepare"
# Tokens that are checked at a time.
CHUNK = 1 << 22


class DatatrovePart:
    """A `.ds` file of tokens with its `.ds.index` of document ends and its `.ds.metadata`."""

    num_lines = num_bytes = num_unknown = 0
    by_line = False

    def __init__(self, name: str, file: Path, vocabulary_size: int) -> None:
        self.name, self.file, self.vocabulary_size = name, file, vocabulary_size
        self.index = file.with_name(f"{file.name}.index")
        if not self.index.is_file():
            raise UserError(f"{file} has no {self.index.name}: write it with save_index")
        self.num_documents, rest = divmod(self.index.stat().st_size, 8)
        if rest:
            raise UserError(f"{self.index} is damaged: its size is no multiple of 8 bytes")
        self.num_tokens = int(self.map("document_ends")[-1]) if self.num_documents else 0
        size = file.stat().st_size
        width = self._width() or (4 if self.num_tokens and size == 4 * self.num_tokens else 2)
        if size != width * self.num_tokens:
            raise UserError(
                f"{file} is damaged: found {size:,} bytes, expected {width} for each of the "
                f"{self.num_tokens:,} tokens that {self.index.name} ends with"
            )
        if width == 2 and vocabulary_size > 1 << 16:
            raise UserError(
                f"{file} has tokens of 2 bytes, too few for the tokenizer's vocabulary of "
                f"{vocabulary_size:,}: it was another"
            )
        self.dtype: np.dtype[Any] = np.dtype(f"<u{width}")

    def _width(self) -> int | None:
        """Bytes of a token, from `.ds.metadata` (`tokenizer|bytes`, tokens) if there is one."""
        file = self.file.with_name(f"{self.file.name}.metadata")
        if not file.is_file():
            return None
        try:
            first, count = file.read_text(encoding="utf-8").splitlines()[:2]
            width, num_tokens = int(first.rpartition("|")[2]), int(count)
        except ValueError as error:
            raise UserError(f"{file} is damaged: {error}; make it anew or delete it") from None
        if num_tokens != self.num_tokens:
            raise UserError(
                f"{file} says {num_tokens:,} tokens, {self.index.name} {self.num_tokens:,}: one of "
                "them belongs to other tokens"
            )
        return width

    def map(self, name: str) -> npt.NDArray[Any]:
        if name in ("line_ends", "document_bytes"):
            raise UserError(f"data=datatrove has no {name.replace('_', ' ')}: {INSTEAD}")
        file, dtype = (
            (self.index, np.dtype("<u8")) if name == "document_ends" else (self.file, self.dtype)
        )
        return np.memmap(file, dtype, "r") if file.stat().st_size else np.empty(0, dtype)

    def document_id(self, index: int) -> str:
        return f"{self.name}:{index + 1}"

    def measure(self, eos_id: int) -> dict[str, Any]:
        """SHA-256 of the tokens, the highest id, and how many documents do not end with `<eos>`."""
        ends = np.asarray(self.map("document_ends"), np.int64)
        if len(ends) and not (np.diff(ends, prepend=0) > 0).all():
            raise UserError(f"{self.index} is damaged: its document ends do not increase")
        tokens = self.map("tokens")
        digest, highest, unended = hashlib.sha256(ends.tobytes()), -1, 0
        for start in range(0, self.num_tokens, CHUNK):
            chunk = np.array(tokens[start : start + CHUNK])
            first, last = np.searchsorted(ends, [start, start + len(chunk)], side="right")
            digest.update(chunk.data)
            highest = max(highest, int(chunk.max()))
            unended += int((chunk[ends[first:last] - 1 - start] != eos_id).sum())
        return {"sha256": digest.hexdigest(), "highest": highest, "unended": unended}


class Datatrove(PreparedSource):
    """Directories of `.ds` files, one for each split; the tokenizer is the one they were made with.

    All tokens are read once, to check them; the result stays valid while the files' sizes and
    times do.
    """

    refused = MappingProxyType({"sentence": f"data=datatrove has no line ends: {INSTEAD}"})
    has_bytes = False

    def __init__(
        self, path: str, *, valid_path: str | None = None, test_path: str | None = None
    ) -> None:
        """path: a directory, glob or file, of train. valid_path, test_path: of the other splits."""
        every = {"train": path, "valid": valid_path, "test": test_path}
        self._paths = {split: each for split, each in every.items() if each is not None}
        self._files = {
            split: finding.find_files(
                each, "data.path" if split == "train" else f"data.{split}_path", (SUFFIX,)
            )
            for split, each in self._paths.items()
        }
        self._check_lost()
        super().__init__(f"data.path={path}", {})

    def _check_lost(self) -> None:
        """Raise UserError if the file of tokens is missing beside an index."""
        for folder in {file.parent for files in self._files.values() for file in files.values()}:
            for index in folder.glob(f"*{SUFFIX}.index"):
                if not index.with_suffix("").exists():
                    raise UserError(f"{index} has lost its tokens, {index.stem}: write them anew")

    def _own_splits(self) -> Iterable[str]:
        return self._files

    def _content(self) -> Iterator[object]:
        """Names, sizes and times; the hashes of the stores cover the tokens themselves."""
        for split, files in self._files.items():
            for name, file in files.items():
                for each in (file, file.with_name(f"{file.name}.index")):
                    status = each.stat() if each.exists() else None
                    yield split, name, status and (status.st_size, status.st_mtime_ns)

    def describe(self) -> dict[str, object]:
        num_files = {split: len(files) for split, files in self._files.items()}
        return {**super().describe(), "paths": dict(self._paths), "num_files": num_files}

    def prepared(
        self, tokenizer: Tokenizer | None, cache: Path, splits: Sequence[str] | None
    ) -> Prepared:
        if not (tokenizer and tokenizer.is_trained):
            raise UserError(
                f"{self._where} has tokens, no text to train a tokenizer on: give the one they "
                "were made with, tokenizer=pretrained tokenizer.path=tokenizer.json"
            )
        stores = {split: self._store(split, tokenizer, cache) for split in self._wanted(splits)}
        hashes = [tokenizer.hash(), *(store.sha256 for store in stores.values())]
        joined = hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:32]
        directory = Path(self._paths["train"])
        return Prepared(tokenizer, stores, directory, joined, self.describe(), {})

    def _store(self, split: str, tokenizer: Tokenizer, cache: Path) -> TokenStore:
        parts = [
            DatatrovePart(name, file, tokenizer.vocabulary_size)
            for name, file in self._files[split].items()
        ]
        if len({part.dtype for part in parts}) > 1:
            raise UserError(f"{self._paths[split]} has files of 2 and of 4 bytes a token")
        if not sum(part.num_tokens for part in parts):
            raise UserError(f"{self._paths[split]} has no tokens")
        return TokenStore(
            Path(self._paths[split]), parts, self._checked(split, parts, tokenizer, cache)
        )

    def _checked(
        self, split: str, parts: Sequence[DatatrovePart], tokenizer: Tokenizer, cache: Path
    ) -> str:
        """The hash of a split's tokens, which are all checked the first time."""
        key = [self.fingerprint(), split, tokenizer.hash()]
        file = cache / hashlib.sha256("\n".join(key).encode()).hexdigest()[:32] / "datatrove.json"
        if not file.exists():
            with ThreadPoolExecutor() as pool:
                measured = list(
                    pool.map(partial(DatatrovePart.measure, eos_id=tokenizer.eos_id), parts)
                )
            self._report(split, parts, measured, tokenizer)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps([each["sha256"] for each in measured]).encode())
        return hashlib.sha256(file.read_bytes()).hexdigest()

    def _report(
        self,
        split: str,
        parts: Sequence[DatatrovePart],
        measured: Sequence[dict[str, Any]],
        tokenizer: Tokenizer,
    ) -> None:
        for part, each in zip(parts, measured, strict=True):
            if each["highest"] >= tokenizer.vocabulary_size:
                raise UserError(
                    f"{part.file} has the token {each['highest']}, beyond the tokenizer's "
                    f"vocabulary of {tokenizer.vocabulary_size:,}: it was made with another"
                )
        if unended := sum(each["unended"] for each in measured):
            number = sum(part.num_documents for part in parts)
            raise UserError(
                f"{self._paths[split]}: {unended:,} of {number:,} documents do not end with token "
                f"{tokenizer.eos_id}, which closes a document here: name the token that does with "
                "tokenizer.eos, or write the files with eos_token"
            )
