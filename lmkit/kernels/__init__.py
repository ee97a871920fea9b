"""Fast functions on tensors, equal to PyTorch's: C that is built where it runs, and its choice."""

from lmkit.kernels.library import UNITS, Kernels, call, choice, compiled, load, padded, use

__all__ = ["UNITS", "Kernels", "call", "choice", "compiled", "load", "padded", "use"]
