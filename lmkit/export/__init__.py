"""Writing a trained model for other programs."""

from lmkit.export.huggingface import write_huggingface

__all__ = ["write_huggingface"]
