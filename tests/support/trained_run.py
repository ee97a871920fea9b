"""A run directory as training leaves it, with random weights, in a moment."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import nn

from lmkit.assembly import build_model
from lmkit.config.build import build
from lmkit.corpus import WikiText
from lmkit.inference import TrainedModel
from lmkit.run import Run
from lmkit.run.checkpoints import AtomicCheckpointIO, link
from lmkit.store import prepare

MODELS = {
    "lstm": {"_target_": "lmkit.model.LSTM", "num_layers": 2, "tie_weights": True},
    "gru": {"_target_": "lmkit.model.GRU", "num_layers": 2},
    "tanh": {"_target_": "lmkit.model.Elman", "num_layers": 2, "nonlinearity": "tanh"},
    "relu": {"_target_": "lmkit.model.Elman", "num_layers": 1, "nonlinearity": "relu"},
    "sigmoid": {"_target_": "lmkit.model.Elman", "num_layers": 1, "nonlinearity": "sigmoid"},
    "window": {"_target_": "lmkit.model.Window", "context": 3},
}
TOKENIZERS = {
    "word": {"_target_": "lmkit.tokenizer.Word"},
    "bytes": {"_target_": "lmkit.tokenizer.Bytes"},
    "characters": {"_target_": "lmkit.tokenizer.Characters"},
    "bpe": {"_target_": "lmkit.tokenizer.ByteLevelBPE", "vocabulary_size": 280},
}
TRAIN = """ = First = \n the cat sat on the mat . \n\n the dog ran . \n
 = Second = \n a dog saw the cat ; the cat ran . \n the mat lay there . \n"""
TEST = """ = Third = \n the cat saw a dog on the mat . \n\n = Fourth = \n a zebra ran . \n
 = Fifth = \n the end . \n"""


def make_run(
    outputs: Path, model: str = "lstm", tokenizer: str = "word", protocol: str = "document"
) -> Run:
    """A finished run on three tiny files of WikiText's form."""
    corpus = outputs / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for split, text in (("train", TRAIN), ("valid", TRAIN), ("test", TEST)):
        (corpus / f"{split}.txt").write_text(text)
    config = {
        "outputs": str(outputs),
        "name": "tiny",
        "run_id": None,
        "seed": 1,
        "data": {"_target_": "lmkit.corpus.WikiText", "path": str(corpus), "protocol": protocol},
        "tokenizer": TOKENIZERS[tokenizer],
        "model": {**MODELS[model], "embedding_size": 12, "hidden_size": 12, "init_range": 0.1},
        "head": {"_target_": "lmkit.head.FullSoftmax"},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 1.0},
        "scheduler": None,
        "trainer": {
            "_target_": "lightning.pytorch.Trainer",
            "accelerator": "cpu",
            "devices": 1,
            "precision": "32-true",
            "max_epochs": 1,
        },
        "logger": {},
        "callbacks": {},
    }
    run = Run.create(outputs, "tiny", f"{model}-{tokenizer}-{protocol}", config)
    untrained = build("tokenizer", config["tokenizer"])
    by_line = protocol == "sentence"
    prepared = prepare(
        WikiText(str(corpus)), untrained, outputs / ".cache", progress=False, by_line=by_line
    )
    prepared.tokenizer.save(run.path)
    splits = {split: {"sha256": store.sha256} for split, store in prepared.stores.items()}
    run.write("data.json", {"tokenizer": prepared.tokenizer.hash(), "splits": splits})
    save_weights(run, config, prepared.tokenizer)
    run.write_status("finished")
    run.release()
    return run


def save_weights(run, config, tokenizer, step=7, scale=1.0):
    """Random weights, large enough for predictions far from uniform, as a checkpoint."""
    torch.manual_seed(0)
    model, head = build_model(config, tokenizer.vocabulary_size)
    module = nn.ModuleDict({"model": model, "head": head})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1, 1).mul_(scale)
    checkpoint = {"state_dict": module.state_dict(), "global_step": step, "epoch": 1}
    path = run.path / "checkpoints" / f"step-{step:09d}.ckpt"
    AtomicCheckpointIO({"tokenizer": tokenizer.hash()}).save_checkpoint(checkpoint, path)
    for name in ("best", "last"):
        link(path.with_name(f"{name}.ckpt"), path)


def warned(caplog) -> list[str]:
    """The warnings logged so far."""
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


def load(run: Run) -> TrainedModel:
    return TrainedModel.load(run, run.config())


@contextmanager
def real_stdout() -> Iterator[None]:
    """Let `print` go to the process's stdout, which capfd reads and `format=json` redirects."""
    with open(1, "w", encoding="utf-8", closefd=False) as stdout, redirect_stdout(stdout):
        yield


class SlowTwin:
    """The same weights in stock modules, fed one sequence at a time from the zero state."""

    def __init__(self, trained: TrainedModel) -> None:
        self.model, self.head = trained.model, trained.head
        self.kind = type(trained.model).__name__
        if self.kind == "Window":
            return
        layers = trained.model.layers
        first = layers[0]
        sizes = (first.weight_ih.shape[1], first.hidden_size, len(layers))
        nonlinearity = getattr(first, "nonlinearity", None)
        if self.kind == "Elman" and nonlinearity == "sigmoid":
            return
        extra = {"nonlinearity": nonlinearity} if self.kind == "Elman" else {}
        stock = {"LSTM": nn.LSTM, "GRU": nn.GRU, "Elman": nn.RNN}[self.kind]
        self.stock = stock(*sizes, batch_first=True, **extra)
        for index, layer in enumerate(layers):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(self.stock, f"{name}_l{index}").data.copy_(getattr(layer, name))

    @torch.no_grad()
    def log_prob(self, inputs: list[int]) -> torch.Tensor:
        """inputs from the start of a text -> (len(inputs), vocabulary)."""
        embedded = self.model.embedding(torch.tensor([inputs]))
        if self.kind == "Window":
            context, size = self.model.context, embedded.shape[-1]
            padded = torch.cat([torch.zeros(1, context - 1, size), embedded], dim=1)
            windows = padded.unfold(1, context, 1).transpose(2, 3).flatten(2)
            hidden = torch.tanh(self.model.projection(windows))
        elif hasattr(self, "stock"):
            hidden = self.stock(embedded)[0]
        else:  # no stock module has sigmoid
            (layer,) = self.model.layers
            h, steps = torch.zeros(1, layer.hidden_size), []
            for e in embedded[0]:
                h = torch.sigmoid(
                    layer.weight_ih @ e + layer.bias_ih + h @ layer.weight_hh.T + layer.bias_hh
                )
                steps.append(h)
            hidden = torch.stack(steps, dim=1)
        logits = hidden[0] @ self.head.weight.T + self.head.bias
        return logits.log_softmax(-1)

    def nll_sum(self, eos_id: int, tokens: list[int]) -> float:
        """Nats of a text read from its start: `<eos>` first, nothing forgotten to its end."""
        log_prob = self.log_prob([eos_id, *tokens[:-1]])
        return math.fsum(-log_prob[place, token].item() for place, token in enumerate(tokens))
