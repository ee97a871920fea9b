"""The norm of gradients, and which optimiser may have them sparse or scaled by its rate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def clip_norm(
    optimizer: Optimizer, parameters: Sequence[nn.Parameter], most: float, norm: Tensor
) -> None:
    """Make the next step one of gradients whose norm is at most `most`; norm: what it is."""
    if norm.device.type != "cpu":  # which is not waited for
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
        return
    share = most / (float(norm) + 1e-6)
    if share >= 1:
        return
    if is_plain_sgd(optimizer):  # a shorter step is the same, without a pass over all
        scale_rates(optimizer, share)
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(share)


def scale_rates(optimizer: Optimizer, factor: float) -> None:
    """Multiply the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] *= factor
