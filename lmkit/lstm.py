"""A layer of long short-term memory on the compiled kernels, for training on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmkit import kernels
from lmkit.gemm import fast_matmul


class CompiledLSTM(torch.autograd.Function):
    """torch.lstm in one layer, batch first, with resets: after one the state is exactly 0."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        resets: Tensor,
        h: Tensor,
        c: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor,
        bias_hh: Tensor,
        dtype: torch.dtype,
        needs_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """inputs (lanes, time, n), resets bool (lanes, time), state (lanes, hidden_size),
        float32 weights as torch.lstm has them -> outputs (lanes, time, hidden_size) in `dtype`,
        in which is multiplied, and the float32 state after the window."""
        lanes, time, size = inputs.shape
        hidden_size = weight_hh.shape[1]
        first, width = kernels.padded(size), kernels.padded(hidden_size)
        rows = inputs.new_empty(time + 1, lanes, first + width, dtype=dtype)
        rows[:time, :, :size] = inputs.transpose(0, 1)
        rows[:time, :, size:first] = 0
        rows[0, :, first:] = 0
        hiddens = rows[:, :, first : first + hidden_size]
        hiddens[0] = h
        cell = c.new_zeros(lanes, width, dtype=torch.float32)
        cell[:, :hidden_size] = c
        cells = rows.new_empty(time + 1, lanes, width)
        cells[0] = cell
        bias = cell.new_zeros(4, width)
        bias[:, :hidden_size] = (bias_ih + bias_hh).view(4, hidden_size)
        bias = bias.view(4, -1, kernels.UNITS).transpose(0, 1).contiguous()
        gates = rows.new_empty(time, lanes, 4 * width) if needs_grad else None
        resets = resets.T.contiguous()
        weight = kernels.pack_gates(weight_ih, weight_hh, dtype)
        kernels.lstm_forward(rows, resets, weight, bias, cell, cells, gates)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rows, resets, cells, gates, weight_ih, weight_hh)
        ctx.inputs_dtype = inputs.dtype
        last = hiddens[time].to(torch.float32, copy=True)
        return hiddens[1:].transpose(0, 1), last, cell[:, :hidden_size]

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_h: Tensor | None, grad_c: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # only under create_graph=True
            raise RuntimeError("the compiled LSTM has no second derivative: set kernels=torch")
        rows, resets, cells, gates, weight_ih, weight_hh = ctx.saved_tensors
        time, lanes = resets.shape
        hidden_size, size = weight_hh.shape[1], weight_ih.shape[1]
        first = kernels.padded(size)
        grad_hiddens = rows.new_zeros(time, lanes, hidden_size)
        if grad is not None:
            grad_hiddens.copy_(grad.transpose(0, 1))
        grad_cell = rows.new_zeros(lanes, cells.shape[2], dtype=torch.float32)
        if grad_c is not None:
            grad_cell[:, :hidden_size] = grad_c
        weight = kernels.pack_columns(weight_hh, rows.dtype)
        last = None if grad_h is None else grad_h.contiguous()
        grad_gates, grad_bias = kernels.lstm_backward(
            weight, resets, cells, gates, grad_hiddens, last, grad_cell
        )
        flat = grad_gates.flatten(0, 1)
        with torch.autocast("cpu", enabled=False), fast_matmul():
            grad_inputs = (flat @ weight_ih.to(flat.dtype)).view(time, lanes, size).transpose(0, 1)
            grad_weight = flat.T @ rows[:-1].flatten(0, 1)
            first_h = None
            if ctx.needs_input_grad[2]:
                first_h = (grad_gates[0] @ weight_hh.to(flat.dtype)).float()
        return (
            grad_inputs.to(ctx.inputs_dtype),
            None,
            first_h,
            grad_cell[:, :hidden_size],
            grad_weight[:, :size].float(),
            grad_weight[:, first : first + hidden_size].float(),
            grad_bias,
            grad_bias.clone(),
            None,
            None,
        )
