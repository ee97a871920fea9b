"""Scores of single tokens: probability, entropy of the prediction, rank, likeliest tokens."""

from __future__ import annotations

import math
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


# Logits that are looked at together: few enough that a processor's cache holds them.
LOGITS_IN_CACHE = 2**20
LOGITS_IN_CACHE_ON_GPU = 2**27


class Predictions(NamedTuple):
    """How tokens were predicted; each is (n,).

    bits: the surprisal, -log2 p(token). entropy: of the prediction, in bits. rank: of the token in
    it, as in `TokenScore`. shares: (n, k), the probability of each of k sets of tokens.
    """

    bits: Tensor
    entropy: Tensor
    rank: Tensor
    shares: Tensor


def predictions(log_prob: Tensor, targets: Tensor, sets: Tensor) -> Predictions:
    """log_prob float32 (n, vocabulary), targets (n), sets float32 (vocabulary, k), 1 for the tokens
    of a set and 0 for others; log_prob is not changed."""
    size = log_prob.shape[1]
    on_cpu = log_prob.device.type == "cpu"
    num_rows = max(1, (LOGITS_IN_CACHE if on_cpu else LOGITS_IN_CACHE_ON_GPU) // size)
    target_log_prob = log_prob.gather(1, targets[:, None])  # (n, 1)
    buffer = log_prob.new_empty(min(num_rows, len(log_prob)), size)
    entropy, rank, shares = [], [], []
    for rows, target in zip(log_prob.split(num_rows), target_log_prob.split(num_rows), strict=True):
        prob = torch.exp(rows, out=buffer[: len(rows)])
        shares.append(prob @ sets)
        entropy.append(prob.mul_(rows).sum(dim=1))
        # As float32, whose sum is the fastest: exact up to 2^24.
        rank.append(torch.gt(rows, target, out=prob).sum(dim=1))
    return Predictions(
        target_log_prob[:, 0] / -math.log(2),
        torch.cat(entropy) / -math.log(2),
        1 + torch.cat(rank).long(),
        torch.cat(shares),
    )
