"""Muon for the matrices of the hidden layers, and Adam for all other parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim._muon import muon  # torch.optim.Muon is this over whole parameters
from torch.optim.adamw import adamw

from lmkit.ranges import NonNegative, Positive, Share

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the iteration, as torch.optim.Muon has them
EPS = 1e-7
Named = tuple[str, nn.Parameter]
Betas = tuple[Share, Share]


class MuonWithAdam(Optimizer):
    """Muon (Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982) for the matrices of the hidden
    layers; AdamW (Loshchilov and Hutter 2019) for embedding, head, biases and other vectors.

    Muon's update is the momentum of the gradient with all singular values near 1. The recurrent
    layers' matrices are stacks of one block for each gate (their attribute `blocks`: the rows of
    each); by default each block has an update of its own. The iteration runs in bf16, as
    torch.optim.Muon's does, whatever the precision.

    params: pairs of names and parameters, or groups of them.
    lr: rate of the matrices, and of the others unless adam_lr says another.
    adam_lr: rate of the other parameters; null: as lr.
    weight_decay: share of every parameter that a step of rate 1 takes away.
    momentum: of Muon.
    nesterov: whether Muon looks ahead by its momentum.
    ns_steps: iterations of Newton and Schulz.
    adjust_lr_fn: what Muon's rate is multiplied by; match_rms_adamw: 0.2 times the root of a
    block's larger side, so that rates are those of Adam; original: the root of rows by columns, if
    above 1.
    by_gate: whether each gate's block of a recurrent layer is a matrix, or their stack is.
    betas: of Adam.
    eps: of Adam.
    fused: whether Adam's step is one kernel.
    """

    by_name = True  # lmkit passes the names of the parameters too

    def __init__(
        self,
        params: Iterable[Any],
        lr: NonNegative = 2e-3,
        *,
        adam_lr: NonNegative | None = None,
        weight_decay: NonNegative = 0.0,
        momentum: Share = 0.95,
        nesterov: bool = True,
        ns_steps: Annotated[int, Ge(1), Lt(100)] = 5,
        adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
        by_gate: bool = True,
        betas: Betas = (0.9, 0.999),
        eps: Positive = 1e-8,
        fused: bool = True,
    ) -> None:
        of_muon: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        of_muon |= {"adjust_lr_fn": adjust_lr_fn, "by_gate": by_gate}
        of_adam = {"adam_lr": adam_lr, "betas": tuple(betas), "eps": eps, "fused": fused}
        defaults = {"lr": lr, "weight_decay": weight_decay, **of_muon, **of_adam}
        given = list(params)
        groups = given if given and isinstance(given[0], Mapping) else [{"params": given}]
        if not all(isinstance(each, tuple) for group in groups for each in group["params"]):
            raise TypeError(
                "MuonWithAdam takes pairs of names and parameters: task.named_parameters()"
            )
        parts = [part for group in groups for part in _parts(group, defaults)]
        super().__init__(parts, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (self._adam if group["blocks"] is None else self._muon)(group)
        return loss

    def _muon(self, group: dict[str, Any]) -> None:
        weights: list[Tensor] = []  # one for each block, as are the others
        grads: list[Tensor] = []
        momenta: list[Tensor] = []
        for parameter, blocks in zip(group["params"], group["blocks"], strict=True):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            blocks = blocks if group["by_gate"] else 1
            weights += _divided(parameter, blocks)  # views, which are changed in place
            grads += _divided(parameter.grad, blocks)
            momenta += _divided(state["momentum_buffer"], blocks)
        muon(
            weights,
            grads,
            momenta,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            ns_coefficients=COEFFICIENTS,
            ns_steps=group["ns_steps"],
            eps=EPS,
            adjust_lr_fn=group["adjust_lr_fn"],
            has_complex=False,
        )

    def _adam(self, group: dict[str, Any]) -> None:
        parameters = [each for each in group["params"] if each.grad is not None]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                at = parameter.device if group["fused"] else None
                state["step"] = torch.zeros((), dtype=torch.float32, device=at)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            exp_avgs=[state["exp_avg"] for state in states],
            exp_avg_sqs=[state["exp_avg_sq"] for state in states],
            max_exp_avg_sqs=[],
            state_steps=[state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix of a hidden layer, by its name in a task."""
    looked_up = ".embedding." in f".{name}"
    return parameter.ndim == 2 and not looked_up and not name.startswith("head.")


def _parts(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The group of the matrices of a group, and that of its other parameters; each if there are
    any."""
    pairs: list[Named] = list(group["params"])
    matrices = [pair for pair in pairs if is_hidden_matrix(*pair)]
    others = [pair for pair in pairs if not is_hidden_matrix(*pair)]
    # A rate of the group, of all or of Adam's alone, counts before those of the optimiser.
    adam_lr = group.get("adam_lr", group.get("lr"))
    if adam_lr is None:
        adam_lr = defaults["lr"] if defaults["adam_lr"] is None else defaults["adam_lr"]
    of_adam: dict[str, Any] = {"blocks": None, "lr": adam_lr}
    if matrices:
        of_adam["name"] = f"{group['name']} adam" if "name" in group else "adam"
    parts: list[tuple[list[Named], dict[str, Any]]] = [
        (matrices, {"blocks": [_blocks(matrix) for _, matrix in matrices]}),
        (others, of_adam),
    ]
    return [{**group, "params": [p for _, p in here], **own} for here, own in parts if here]


def _blocks(matrix: Tensor) -> list[int]:
    """The rows of each block of a matrix: all, where it does not say that it has several blocks."""
    return getattr(matrix, "blocks", [len(matrix)])


def _divided(matrix: Tensor, blocks: list[int] | int) -> tuple[Tensor, ...]:
    """The blocks of a matrix, by the rows of each, or, as in older checkpoints, by their number."""
    return matrix.chunk(blocks) if isinstance(blocks, int) else matrix.split(blocks)
