"""Writing a trained model for other programs."""

from lmkit.export.arpa import write_arpa
from lmkit.export.huggingface import write_huggingface
from lmkit.export.onnx_model import Contract, write_onnx
from lmkit.export.source import write_safetensors

__all__ = ["Contract", "write_arpa", "write_huggingface", "write_onnx", "write_safetensors"]
