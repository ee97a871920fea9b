"""A long short-term memory layer on the compiled kernels, for training on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmkit.kernels.library import UNITS, call, padded
from lmkit.kernels.matmul import fast_matmul


class CompiledLSTM(torch.autograd.Function):
    """torch.lstm of one layer, batch first, with resets, after which the state is exactly 0."""

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
        """inputs (lanes, time, n), resets bool (lanes, time), state (lanes, hidden_size), float32
        weights as in torch.lstm -> outputs (lanes, time, hidden_size) in `dtype`, the type of the
        products, and the float32 state after the window."""
        lanes, time, size = inputs.shape
        hidden_size = weight_hh.shape[1]
        first, width = padded(size), padded(hidden_size)
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
        bias = bias.view(4, -1, UNITS).transpose(0, 1).contiguous()
        gates = rows.new_empty(time, lanes, 4 * width) if needs_grad else None
        resets = resets.T.contiguous()
        weight = pack_gates(weight_ih, weight_hh, dtype)
        lstm_forward(rows, resets, weight, bias, cell, cells, gates)
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
        first = padded(size)
        grad_hiddens = rows.new_zeros(time, lanes, hidden_size)
        if grad is not None:
            grad_hiddens.copy_(grad.transpose(0, 1))
        grad_cell = rows.new_zeros(lanes, cells.shape[2], dtype=torch.float32)
        if grad_c is not None:
            grad_cell[:, :hidden_size] = grad_c
        weight = pack_columns(weight_hh, rows.dtype)
        last = None if grad_h is None else grad_h.contiguous()
        grad_gates, grad_bias = lstm_backward(
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


def pack_gates(weight_ih: Tensor, weight_hh: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 (4 * hidden_size, n) and (4 * hidden_size, hidden_size) -> the panels by which
    `lstm_forward` multiplies."""
    hidden_size = weight_hh.shape[1]
    width = padded(weight_ih.shape[1]) + padded(hidden_size)
    panels = weight_hh.new_empty(4 * padded(hidden_size) * width, dtype=dtype)
    pack = 4 // panels.element_size()  # elements to a word
    first = 0
    for weight in (weight_ih, weight_hh):
        size = weight.shape[1]
        call("pack_gates", dtype, hidden_size, size, first, width // pack, weight, panels)
        first = padded(size) // pack
    return panels


def pack_columns(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """weight float32 (4 * hidden_size, hidden_size) -> the panels of `lstm_backward`."""
    rows, hidden_size = weight.shape
    panels = weight.new_empty(rows * padded(hidden_size, 2 * UNITS), dtype=dtype)
    call("pack_columns", dtype, hidden_size, weight, panels)
    return panels


def lstm_forward(
    rows: Tensor,
    resets: Tensor,
    weight: Tensor,
    bias: Tensor,
    cell: Tensor,
    cells: Tensor,
    gates: Tensor | None,
) -> None:
    """Compute a window in place.

    Read: rows (time + 1, lanes, padded input size + padded hidden size), with the inputs and the
    first hidden state; resets bool (time, lanes); weight of `pack_gates`; bias float32 (panels, 4,
    16); cell float32 (lanes, padded hidden size), the first; cells[0].
    Written: the other hidden states in rows; cells (time + 1, lanes, padded); gates (time, lanes,
    4 * padded) unless None; cell, the last.
    """
    time, lanes = resets.shape
    sizes = (time, lanes, rows.shape[2] - cell.shape[1], cell.shape[1] // UNITS)
    call("lstm_forward", rows.dtype, *sizes, rows, weight, bias, resets, cell, cells, gates)


def lstm_backward(
    weight_hh: Tensor,
    resets: Tensor,
    cells: Tensor,
    gates: Tensor,
    grad_hiddens: Tensor,
    grad_hidden: Tensor | None,
    grad_cell: Tensor,
) -> tuple[Tensor, Tensor]:
    """weight_hh of `pack_columns`; resets, cells and gates of `lstm_forward`; the gradients of the
    outputs (time, lanes, hidden_size), of the last hidden state, float32 (lanes, hidden_size) or
    None, and of the last cell, float32 (lanes, padded hidden size) -> the gradients of the gates
    (time, lanes, 4 * hidden_size) and of the bias, float32 (4 * hidden_size); grad_cell becomes the
    gradient of the first cell."""
    time, lanes, hidden_size = grad_hiddens.shape
    grad_gates = grad_hiddens.new_empty(time, lanes, 4 * hidden_size)
    grad_bias = grad_cell.new_empty(4 * hidden_size)
    saved = (weight_hh, resets, cells, gates)
    grads = (grad_hiddens, grad_hidden, grad_cell, grad_gates, grad_bias)
    call("lstm_backward", grad_hiddens.dtype, time, lanes, hidden_size, *saved, *grads)
    return grad_gates, grad_bias
