"""The fused cross-entropy of a mixture of softmaxes over one matrix."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmkit.head.linear_cross_entropy import Memory, Terms, nll_and_gradients
from lmkit.head.made_in_forward import hand_out, make
from lmkit.kernels.matmul import product_dtype


class MixtureCrossEntropy(torch.autograd.Function):
    """sum_n -weight_n * log sum_k exp(log_prior_nk) softmax(U latent_nk + b)[target_n] (Yang et al.
    2018, equation 4), whose gradients forward computes too, by chunks of rows.

    The nll of each expert at the target is enough for the loss and its gradient: with r_nk, the
    probability of expert k given the target, d loss / d log_prior_nk = -weight_n r_nk, and those of
    latent and U are the ones of r_nk weight_n times expert k's own cross-entropy.
    """

    @staticmethod
    def forward(
        ctx: Any,
        latent: Tensor,
        log_prior: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weight: Tensor,
        chunk_size: int,
        memory: Memory,
    ) -> tuple[Tensor, Tensor]:
        """latent (rows, experts, size), log_prior float32 (rows, experts), matrix (vocabulary,
        size), bias (vocabulary), targets int64 and weight float32 (rows) -> the loss and the
        sum of nll, as `made_in_forward.make` has them.

        chunk_size: vectors of `latent` whose odds or logits exist at a time; at least the experts
        of one row.
        """
        dtype = product_dtype(matrix)
        compute = partial(
            _mixed,
            chunk_size=chunk_size,
            dtype=dtype,
            memory=memory,
            needs_grad=any(ctx.needs_input_grad[:4]),
        )
        return make(ctx, compute, (latent, log_prior, matrix, bias, targets), weight, dtype)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        return hand_out(ctx, grad_loss, 8)


def _mixed(
    latent: Tensor,
    log_prior: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weight: Tensor,
    *,
    chunk_size: int,
    dtype: torch.dtype,
    memory: Memory,
    needs_grad: bool,
) -> tuple[Tensor, list[Tensor | None]]:
    """nll (rows), and the gradients by latent, log_prior, matrix and bias."""
    num_experts = log_prior.shape[1]
    each, of_each = (tensor.repeat_interleave(num_experts) for tensor in (targets, weight))
    terms = Terms(
        latent.flatten(0, 1), matrix, bias, each, of_each, log_prior.flatten(), num_experts
    )
    nll, gradients = nll_and_gradients(terms, chunk_size, dtype, memory, needs_grad)
    joint = log_prior - nll.view_as(log_prior)  # log of prior times likelihood
    if not needs_grad or gradients.hidden is None:
        return -joint.logsumexp(1), [None, None, None, None]
    by_prior = -weight[:, None] * joint.softmax(1)
    return -joint.logsumexp(1), [
        gradients.hidden.view_as(latent),
        by_prior,
        gradients.matrix,
        gradients.bias,
    ]
