"""The norm of gradients, and which optimiser may have them sparse or scaled by its rate."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import SGD, Optimizer


def is_plain_sgd(optimizer: Optimizer) -> bool:
    """Whether a step is p -= lr * g and no more: then g may be sparse, and lr may scale it."""
    return type(optimizer) is SGD and not any(
        group[key]
        for group in optimizer.param_groups
        for key in ("momentum", "weight_decay", "fused", "foreach")
    )


def global_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The 2-norm of all gradients together; coalesces sparse ones."""
    values = []
    for parameter in parameters:
        if (grad := parameter.grad) is not None:
            if grad.is_sparse:
                grad = parameter.grad = grad.coalesce()
                grad = grad.values()
            values.append(grad)
    return nn.utils.get_total_norm(values)
