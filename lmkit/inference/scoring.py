"""Scores of single tokens: probability, entropy of the prediction, rank, likeliest tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class TokenScore(NamedTuple):
    """One token of a text and how the model predicted it from all tokens before.

    token: its id. piece: its surface; if the model reads it as `<unk>`, as `unknown` says, still
    its own text. nll in nats; bits = nll / ln 2. entropy: of the prediction, in nats. rank: 1 for
    the likeliest token; equally likely ones share the best rank. top: the likeliest tokens, each
    as its surface and its probability.
    """

    token: int
    piece: str
    nll: float
    bits: float
    entropy: float
    rank: int
    top: tuple[tuple[str, float], ...]
    unknown: bool = False


def measures(log_prob: Tensor, targets: Tensor, num_top: int) -> list[tuple[Any, ...]]:
    """log_prob (n, vocabulary), targets (n or more) -> n rows of token, nll, entropy, rank and
    the likeliest tokens' probabilities and ids."""
    targets = targets[: len(log_prob)]
    target_log_prob = log_prob.gather(1, targets[:, None])  # (n, 1)
    top = log_prob.topk(min(num_top, log_prob.shape[1]))
    columns = (
        targets,
        0 - target_log_prob[:, 0],
        torch.special.entr(log_prob.exp()).sum(dim=1),
        1 + (log_prob > target_log_prob).sum(dim=1),
        top.values.exp(),
        top.indices,
    )
    return list(zip(*(column.tolist() for column in columns), strict=True))
