"""The continuous cache of Grave et al. (2017) as plain loops over one text."""

import math


def slow_log_prob(
    hidden: list[list[float]], targets: list[int], size: int, theta: float
) -> list[float]:
    """log p_cache of each target, not a number where there is none before it; hidden: (n, d)."""
    log_probs = []
    for t, target in enumerate(targets):
        weights: dict[int, float] = {}
        for i in range(max(0, t - size), t):
            product = sum(a * b for a, b in zip(hidden[t], hidden[i], strict=True))
            weights[targets[i]] = weights.get(targets[i], 0.0) + math.exp(theta * product)
        if not weights:
            log_probs.append(math.nan)
        elif target not in weights:
            log_probs.append(-math.inf)
        else:
            log_probs.append(math.log(weights[target] / sum(weights.values())))
    return log_probs


def slow_nll(nll: list[float], log_probs: list[float], weight: float) -> list[float]:
    """The nll of the mixture of both, with this weight of the cache."""
    return [
        one
        if math.isnan(log_prob)
        else -math.log((1 - weight) * math.exp(-one) + weight * math.exp(log_prob))
        for one, log_prob in zip(nll, log_probs, strict=True)
    ]
