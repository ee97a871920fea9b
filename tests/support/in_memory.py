"""A text in memory, of documents of drawn tokens, and its windows."""

from dataclasses import dataclass

import numpy as np

from lmkit.windows import WindowLoader

VOCABULARY, EOS = 17, 0


@dataclass
class Text:
    """A token store in memory."""

    lengths: list[int]
    seed: int = 0

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        self.document_ends = self.line_ends = np.cumsum(self.lengths).astype(np.uint64)
        self.num_tokens = int(self.document_ends[-1])
        self.num_documents = self.num_lines = len(self.lengths)
        self.num_bytes = 0
        self.tokens = rng.integers(1, VOCABULARY, self.num_tokens).astype(np.uint16)

    def documents(self):
        return np.split(self.tokens.astype(np.int64), self.document_ends.astype(int)[:-1])

    def release(self):
        pass


def loader(text, *, seed=1, protocol="document", num_lanes=4, bptt=5, **kwargs):
    return WindowLoader(
        text,
        eos_id=EOS,
        protocol=protocol,
        num_lanes=num_lanes,
        bptt=bptt,
        seed=seed,
        **kwargs,
    )
