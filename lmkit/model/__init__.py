"""The language models: from tokens, resets and a state to hidden vectors and the next state."""

from lmkit.model.base import Counted, LanguageModel, Output
from lmkit.model.dropout import Masks
from lmkit.model.elman import Elman
from lmkit.model.embedding import Embedding
from lmkit.model.fixed_window import Window
from lmkit.model.gru import GRU
from lmkit.model.layer import Layer, RecurrentLayer
from lmkit.model.layer_norm_lstm import LayerNormLSTM
from lmkit.model.lstm import LSTM
from lmkit.model.lstmp import LSTMP
from lmkit.model.min_gru import MinGRU
from lmkit.model.min_lstm import MinLSTM
from lmkit.model.mlstm import MLSTM
from lmkit.model.mogrifier import Mogrifier
from lmkit.model.ngram import NGram
from lmkit.model.qrnn import QRNN
from lmkit.model.reader import Reader
from lmkit.model.recurrent import Recurrent
from lmkit.model.residual import Residual
from lmkit.model.slstm import SLSTM
from lmkit.model.state import State, States, detached, finite, joined, share_of

__all__ = [
    "GRU",
    "LSTM",
    "LSTMP",
    "MLSTM",
    "QRNN",
    "SLSTM",
    "Counted",
    "Elman",
    "Embedding",
    "LanguageModel",
    "Layer",
    "LayerNormLSTM",
    "Masks",
    "MinGRU",
    "MinLSTM",
    "Mogrifier",
    "NGram",
    "Output",
    "Reader",
    "Recurrent",
    "RecurrentLayer",
    "Residual",
    "State",
    "States",
    "Window",
    "detached",
    "finite",
    "joined",
    "share_of",
]
