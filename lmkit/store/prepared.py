"""Sources of prepared tokens: a directory that `lmkit prepare store=DIR` made, or several."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from types import MappingProxyType
from typing import Any

from lmkit.corpus import Corpus
from lmkit.corpus.source import SPLITS
from lmkit.errors import UserError
from lmkit.ranges import Positive, Size
from lmkit.store.shard import MANIFEST, NOT_ONE
from lmkit.store.token_store import Mixed, Prepared, TokenStore
from lmkit.system import paths
from lmkit.system.regular_file import DamagedError, read_json
from lmkit.tokenizer import Tokenizer, load_tokenizer
from lmkit.tokenizer.base import FILE

DATA = "data.json"
PLAN = "plan.json"
BY_DOCUMENT = "data=mixture reads document by document; set data.protocol=document"


class PreparedSource(Corpus):
    """The base class of sources that have tokens by split, without their text."""

    has_text = False

    @abstractmethod
    def prepared(
        self, tokenizer: Tokenizer | None, cache: Path, splits: Sequence[str] | None
    ) -> Prepared:
        """The tokens; UserError if they were not made with `tokenizer`.

        tokenizer: None for the one that the tokens come with.
        """

    def _wanted(self, splits: Sequence[str] | None) -> tuple[str, ...]:
        for split in splits or ():
            if split not in self.splits:
                raise UserError(f"{self._where} has no split {split!r}: it has {self.splits}")
        return self.splits if splits is None else tuple(splits)


class Store(PreparedSource):
    """A directory that `lmkit prepare store=DIR` made: its sizes are checked, not its text."""

    has_tokenizer = True
    _key = "data.path"  # the config key of its path

    def __init__(self, path: str) -> None:
        """path: the directory."""
        self._directory = paths.found_at(path, self._key)
        where = f"{self._key}={path}"
        if not self._directory.is_dir():
            raise UserError(f"{where} does not exist; {paths.nearby(self._directory)}")
        if not (self._directory / DATA).exists():
            begun = (self._directory / PLAN).is_file()
            what = "has not been finished" if begun else f"has no {DATA}"
            remedy = (
                "with the command that began it"
                if begun
                else f"with lmkit prepare {quote(f'store={path}')}"
            )
            raise UserError(f"{where} {what}: make it {remedy}")
        try:
            self._data = read_json(self._directory / DATA)
            self._described: dict[str, object] = dict(self._data["source"])
            self._hash = str(self._data["store"])
            self.tokenizer_hash = str(self._data["tokenizer"])
            self._recorded = {name: dict(each) for name, each in self._data["splits"].items()}
        except NOT_ONE:
            what = "is damaged: it is not what lmkit prepare writes"
            remedy = "make it anew with the command that prepared it"
            raise DamagedError(self._directory / DATA, what, remedy) from None
        super().__init__(where, {})

    def _own_splits(self) -> Iterable[str]:
        return [name for name in SPLITS if (self._directory / name / MANIFEST).exists()]

    def check_splits(self) -> None:
        """Raise UserError if a split that was prepared is gone."""
        for split in self._recorded:
            if split not in self.splits:
                raise UserError(
                    f"{self._where} has lost its split {split}, which {DATA} names: make it anew "
                    "with the command that prepared it"
                )

    def is_recorded(self, split: str, store: TokenStore) -> bool:
        """Whether a store has the hash and the counts of the one that was prepared."""
        recorded = self._recorded.get(split, {})
        return "sha256" in recorded and all(
            getattr(store, name, None) == value for name, value in recorded.items()
        )

    def fingerprint(self) -> str:
        return str(self._described.get("fingerprint", ""))

    def describe(self) -> dict[str, object]:
        return {**self._described, "prepared": str(self._directory.absolute())}

    def prepared(
        self, tokenizer: Tokenizer | None, cache: Path, splits: Sequence[str] | None
    ) -> Prepared:
        own = load_tokenizer(self._directory)
        if splits is None:
            self.check_splits()
        own_hash, expected = own.hash(), self.tokenizer_hash
        if own_hash != expected:
            raise UserError(
                f"{self._directory / FILE} is not that of the tokens: found SHA-256 {own_hash}, "
                f"expected {expected}"
            )
        if tokenizer and not (tokenizer.is_trained and tokenizer.hash() == own_hash):
            raise UserError(
                f"{self._where} has tokens of another tokenizer ({own.name}, {own_hash[:12]}): "
                "take the model that was trained on it, or data=store with its own tokenizer"
            )
        stores = {split: TokenStore.open(self._directory / split) for split in self._wanted(splits)}
        for split, store in stores.items():
            if not self.is_recorded(split, store):
                raise UserError(
                    f"{self._directory / split} is not what {DATA} says: lmkit prepare "
                    f"{quote(f'store={self._directory}')} verify=true tells what is damaged"
                )
            if store.vocabulary_size != own.vocabulary_size:
                raise UserError(
                    f"{self._directory / split} has a vocabulary of {store.vocabulary_size}, its "
                    f"{FILE} of {own.vocabulary_size}: they were not made together"
                )
        return Prepared(own, stores, self._directory, self._hash, self.describe(), {})


class _Member(Store):
    """A store in a mixture, whose path has a config key of its own."""

    def __init__(self, path: str, name: str) -> None:
        self._key = f"data.paths.{name}"
        super().__init__(path)


class Mixture(PreparedSource):
    """Several directories that `lmkit prepare store=DIR` made, with one tokenizer.

    Training reads each in proportion to its share of the tokens; evaluation reads all of each.
    """

    has_tokenizer = True
    refused = MappingProxyType(dict.fromkeys(("sentence", "stream"), BY_DOCUMENT))
    repeats = False

    def __init__(
        self,
        paths: Mapping[str, str],
        weights: Mapping[str, Positive] | None = None,
        *,
        epoch_tokens: Size | None = None,
    ) -> None:
        """paths: by a name for each. weights: their shares; as large as they are unless given.
        epoch_tokens: training tokens between two validations, about; unless given, as many as until
        the first of them has been read once."""
        self._stores = {name: _Member(path, name) for name, path in paths.items()}
        self._weights = weights
        self._epoch_tokens = epoch_tokens
        super().__init__("data=mixture", {})

    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        """A mistake if there are no paths, or if the weights have other names than the paths."""
        paths, weights = config["paths"], config["weights"]
        mistakes = [] if paths else [f"{at}.paths={{}}: name at least one, {at}.paths.NAME=DIR"]
        if weights is not None and set(weights) != set(paths):
            mistakes.append(
                f"{at}.weights={', '.join(weights)}: expected one for each of paths "
                f"({', '.join(paths)})"
            )
        return mistakes

    def _own_splits(self) -> Iterable[str]:
        return {split for store in self._stores.values() for split in store.splits}

    def fingerprint(self) -> str:
        each = [f"{name} {store.fingerprint()}" for name, store in self._stores.items()]
        return hashlib.sha256("\n".join(each).encode()).hexdigest()

    def describe(self) -> dict[str, object]:
        return {name: store.describe() for name, store in self._stores.items()}

    def prepared(
        self, tokenizer: Tokenizer | None, cache: Path, splits: Sequence[str] | None
    ) -> Prepared:
        wanted = self._wanted(splits)
        prepared = {
            name: store.prepared(tokenizer, cache, [s for s in wanted if s in store.splits])
            for name, store in self._stores.items()
        }
        (first, one), *others = prepared.items()
        for name, other in others:
            if other.tokenizer.hash() != one.tokenizer.hash():
                raise UserError(
                    f"data.paths.{name} has tokens of another tokenizer than data.paths.{first}: "
                    "prepare it again with tokenizer=stored "
                    f"{quote(f'tokenizer.path={one.directory}')}"
                )
        stores = {
            split: _joined([p.stores[split] for p in prepared.values() if split in p.stores])
            for split in wanted
        }
        trained_on = {n: p.stores["train"] for n, p in prepared.items() if "train" in p.stores}
        weights = self._weights or {name: s.num_tokens for name, s in trained_on.items()}
        shares = [weights[name] for name in trained_on]
        mixed = Mixed([*trained_on.values()], shares, self._epoch_tokens) if trained_on else None
        described = json.dumps(
            [[n, p.hash, (self._weights or {}).get(n)] for n, p in prepared.items()]
        )
        digest = hashlib.sha256(described.encode()).hexdigest()[:32]
        return Prepared(one.tokenizer, stores, one.directory, digest, self.describe(), {}, mixed)


def _joined(stores: Sequence[TokenStore]) -> TokenStore:
    """Several stores as one, with their documents one after another."""
    if len(stores) == 1:
        return stores[0]
    digest = hashlib.sha256("\n".join(store.sha256 for store in stores).encode()).hexdigest()
    return TokenStore(stores[0].directory, [p for store in stores for p in store.parts], digest)
