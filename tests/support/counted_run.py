"""Counted n-gram models of texts in memory, in a moment."""

import torch
from torch import nn

from lmkit.head import NGramTables
from lmkit.inference import TrainedModel
from lmkit.model import NGram
from lmkit.tokenizer import Word


def counted(text, order, protocol, vocabulary_size, eos_id=0, prune=None):
    """The model and head of a text that has tokens, document_ends and line_ends."""
    model = NGram(vocabulary_size, order=order, prune=prune)
    head = NGramTables(model.hidden_size, vocabulary_size)
    ends = {"document": text.document_ends, "sentence": text.line_ends, "stream": None}
    done = model.count(text.tokens, ends[protocol], eos_id, lambda share: None)
    head.load_state_dict(done.head)
    return model, head


def trained(text, order=3, protocol="document"):
    """A counted model of the words of a text, with a vocabulary of its own."""
    from lmkit.inference import Text

    tokenizer = Word()
    tokenizer.learn(tokenizer.count([text]))
    read = Text.of(text, tokenizer, protocol == "sentence")
    size, eos_id = tokenizer.vocabulary_size, tokenizer.eos_id
    model, head = counted(read, order, protocol, size, eos_id)
    return TrainedModel(model, head, tokenizer, protocol=protocol)


def state_of(model, head):
    """Copies of all tensors of both, as a checkpoint has them."""
    module = nn.ModuleDict({"model": model, "head": head})
    return {name: torch.clone(tensor) for name, tensor in module.state_dict().items()}
