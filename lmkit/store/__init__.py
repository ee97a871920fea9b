"""Stores of token ids on disk: encoded from documents, or prepared earlier."""

from lmkit.store.datatrove import Datatrove
from lmkit.store.preparation import prepare
from lmkit.store.prepared import Mixture, Store
from lmkit.store.token_store import Prepared, TokenStore

__all__ = ["Datatrove", "Mixture", "Prepared", "Store", "TokenStore", "prepare"]
