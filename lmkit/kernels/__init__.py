"""Compiled kernels that compute the same as PyTorch: C code built at first use, and its switch."""

from lmkit.kernels.library import UNITS, Kernels, call, choice, compiled, graphs, load, padded, use

__all__ = ["UNITS", "Kernels", "call", "choice", "compiled", "graphs", "load", "padded", "use"]
