"""A trained model as a file of ONNX: batch and time free, states in and out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lmkit.errors import ResultError, UserError
from lmkit.export.directory import new_directory
from lmkit.export.fast_tokenizer import fast_tokenizer
from lmkit.export.plain import Plain
from lmkit.inference import TrainedModel
from lmkit.tokenizer import Tokenizer
from lmkit.windows import Tokens

Contract = Literal["states", "sherpa", "sherpa_rescore"]

OPSET = 17
SHAPES = ((1, 1), (3, 7), (2, 33))  # (batch, time) at which a file is compared with PyTorch
TOLERANCE = 1e-4  # nats
MOST_MEASURED = 50_000  # tokens, of a text on which a quantised model is measured
PIECE = 2048  # of them at a time
# Tokens that a line of tokens.txt cannot hold.
NAMES = {" ": "<space>", "\n": "<newline>", "\t": "<tab>", "\r": "<return>"}


class Sherpa(nn.Module):
    """sherpa-onnx's online language model, for shallow fusion: x (N, L), h0 and c0 (num_layers, N,
    hidden_size) -> log_prob (N, L, vocabulary), next_h0, next_c0."""

    inputs = ("x", "h0", "c0")
    outputs = ("log_prob", "next_h0", "next_c0")
    axes: ClassVar = {
        **{"x": (0, 1), "log_prob": (0, 1)},
        **{"h0": (1,), "c0": (1,), "next_h0": (1,), "next_c0": (1,)},
    }

    def __init__(self, plain: Plain) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(h0.unbind(0), c0.unbind(0), strict=True)
        log_prob, *after = self.plain(x, *(each for pair in pairs for each in pair))
        return log_prob, torch.stack(after[::2]), torch.stack(after[1::2])

    def example(self, batch: int, time: int) -> tuple[Tensor, ...]:
        """Arguments, with random tokens from the state before a text."""
        zero = self.plain.zero(batch)
        return _tokens(self.plain, batch, time), torch.stack(zero[::2]), torch.stack(zero[1::2])


class SherpaRescore(nn.Module):
    """sherpa-onnx's offline language model: x (N, L), without beginning and end, and x_lens (N,) ->
    nll (N,), of each text with its end."""

    inputs = ("x", "x_lens")
    outputs = ("nll",)
    axes: ClassVar = {"x": (0, 1), "x_lens": (0,), "nll": (0,)}

    def __init__(self, plain: Plain, eos_id: int) -> None:
        super().__init__()
        self.plain, self.eos_id = plain, eos_id

    def forward(self, x: Tensor, x_lens: Tensor) -> Tensor:
        end = torch.full_like(x[:, :1], self.eos_id)
        tokens = torch.cat([end, x], dim=1)
        position = torch.cumsum(torch.ones_like(tokens), dim=1) - 1
        lengths = x_lens[:, None]
        targets = torch.where(position == lengths, self.eos_id, torch.cat([x, end], dim=1))
        zeros = [state * torch.ones_like(x[:, :1]).float() for state in self.plain.zero(1)]
        log_prob, *_ = self.plain(tokens, *zeros)
        nll = -log_prob.gather(2, targets[..., None])[..., 0]
        return (nll * (position <= lengths)).sum(1)

    def example(self, batch: int, time: int) -> tuple[Tensor, ...]:
        """Arguments, with random tokens and lengths."""
        lengths = torch.randint(0, time + 1, (batch,))
        lengths[0] = time
        return _tokens(self.plain, batch, time), lengths


class States(nn.Module):
    """lmkit's own: tokens (batch, time) and a state -> log_prob (batch, time, vocabulary) and the
    state after the last position; a state is a tensor for each layer, see `Plain`."""

    def __init__(self, plain: Plain) -> None:
        super().__init__()
        self.plain = plain
        names = plain.names()
        self.inputs = ("tokens", *names)
        self.outputs = ("log_prob", *(f"next_{name}" for name in names))
        self.axes: dict[str, tuple[int, ...]] = dict.fromkeys((*self.inputs, *self.outputs), (0,))
        self.axes |= {"tokens": (0, 1), "log_prob": (0, 1)}

    def forward(self, tokens: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return self.plain(tokens, *state)

    def example(self, batch: int, time: int) -> tuple[Tensor, ...]:
        """Arguments, with random tokens from the state before a text."""
        return _tokens(self.plain, batch, time), *self.plain.zero(batch)


def _tokens(plain: Plain, batch: int, time: int) -> Tensor:
    return torch.randint(0, len(plain.matrix), (batch, time))


def write_onnx(
    trained: TrainedModel,
    path: Path,
    contract: Contract = "states",
    quantize: Literal["int8"] | None = None,
    text: Tokens | None = None,
) -> dict[str, Any]:
    """Write the directory `path`: model.onnx, compared with PyTorch at several shapes, tokens.txt,
    tokenizer.json and with `quantize` model.int8.onnx.

    text: on which the quantised model is measured. Returns the largest difference in nats, and the
    perplexities before and after quantisation. Raises UserError for a model that the contract has
    no room for, ResultError if onnxruntime computes something else.
    """
    _libraries()
    if quantize and text is None:
        raise UserError("quantize=int8: name a text to measure its loss on, with file=TEXT")
    module = _module(trained, contract).eval()
    names = fast_tokenizer(trained.tokenizer)
    with new_directory(path) as directory:
        file = directory / "model.onnx"
        _export(module, file)
        _add_metadata(file, _metadata(trained, module))
        result: dict[str, Any] = {"difference": _difference(module, file)}
        names.save(str(directory / "tokenizer.json"))
        tokens = "\n".join(_lines(names, trained.tokenizer)) + "\n"
        (directory / "tokens.txt").write_text(tokens, encoding="utf-8")
        if quantize and text is not None:
            small = directory / "model.int8.onnx"
            _quantize(file, small)
            before, after = (_perplexity(each, module, text, trained) for each in (file, small))
            result |= {"perplexity": before, "int8_perplexity": after}
    return result


def _libraries() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'format=onnx needs {error.name}: pip install "recurrent-lmkit[onnx]"'
        ) from None


def _module(trained: TrainedModel, contract: Contract) -> Any:
    plain = Plain(trained)
    if contract == "states":
        return States(plain)
    if contract == "sherpa_rescore":
        return SherpaRescore(plain, trained.tokenizer.eos_id)
    sizes = [layer.hidden_size for layer in plain.layers]
    if plain.cell != "lstm" or len(set(sizes)) != 1:
        what = f"an LSTM whose layers are of one size, and this is {plain.cell} of {sizes}"
        raise UserError(f"contract=sherpa: h0 and c0 are those of {what}")
    return Sherpa(plain)


def _export(module: Any, file: Path) -> None:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # this exporter is not the newest, which fixes time
        torch.onnx.export(
            module,
            module.example(2, 5),
            str(file),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(module.inputs),
            output_names=list(module.outputs),
            dynamic_axes={
                name: {axis: f"{name}_{axis}" for axis in axes}
                for name, axes in module.axes.items()
            },
        )


def _metadata(trained: TrainedModel, module: Any) -> dict[str, str]:
    plain = module.plain
    eos = str(trained.tokenizer.eos_id)
    sizes = [layer.hidden_size for layer in plain.layers]
    return {
        "model_type": "rnnlm",
        "version": "1",
        "model_author": "lmkit",
        "cell": plain.cell,
        "num_layers": str(len(sizes) or 1),
        "hidden_size": str(sizes[-1] if sizes else plain.matrix.shape[1]),
        "vocab_size": str(len(plain.matrix)),
        "sos_id": eos,
        "eos_id": eos,
        "protocol": trained.protocol,
    }


def _add_metadata(file: Path, metadata: Mapping[str, str]) -> None:
    import onnx

    model = onnx.load(str(file))
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    onnx.save(model, str(file))


def _session(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _difference(module: Any, file: Path) -> float:
    """The largest difference from PyTorch, over several shapes, in what the file computes."""
    session = _session(file)
    largest = 0.0
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        for batch, time in SHAPES:
            given = module.example(batch, time)
            expected = module(*given)
            expected = expected if isinstance(expected, tuple) else (expected,)
            found = session.run(None, _feed(module, given))
            for own, theirs in zip(expected, found, strict=True):
                largest = max(largest, float(np.abs(own.numpy() - theirs).max()))
    if not largest < TOLERANCE * max(time for _, time in SHAPES):
        raise ResultError(f"onnxruntime differs from PyTorch by {largest:.2e}", None)
    return largest


def _feed(module: Any, given: Sequence[Tensor]) -> dict[str, Any]:
    return {name: each.numpy() for name, each in zip(module.inputs, given, strict=True)}


def _lines(names: Any, tokenizer: Tokenizer) -> Iterator[str]:
    """The lines of tokens.txt: a token and its id."""
    for i in range(tokenizer.vocabulary_size):
        token = names.id_to_token(i) or f"<{i}>"  # ids may have gaps
        yield f"{NAMES.get(token, token)} {i}"


def _quantize(file: Path, small: Path) -> None:
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    prepared = small.with_suffix(".prepared")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
        quantize_dynamic(prepared, small, weight_type=QuantType.QInt8)
    prepared.unlink()


def _perplexity(file: Path, module: Any, text: Tokens, trained: TrainedModel) -> float:
    """Of the first documents of a text, each read from the state before a text; in pieces, between
    which a signal ends the work. Without states a piece is a text of its own."""
    session = _session(file)
    total, count, begin = 0.0, 0, 0
    for end in map(int, text.document_ends):
        before = trained.tokenizer.eos_id
        state = module.example(1, 1)[1:]
        for at in range(begin, min(end, begin + MOST_MEASURED - count), PIECE):
            piece = np.asarray(text.tokens[at : min(at + PIECE, end)]).astype(np.int64)
            ids = torch.from_numpy(piece)[None]
            if isinstance(module, SherpaRescore):  # it adds the end itself
                given: Sequence[Tensor] = (ids[:, :-1], torch.tensor([ids.shape[1] - 1]))
                total += float(session.run(None, _feed(module, given))[0][0])
            else:
                inputs = torch.cat([torch.full((1, 1), before), ids[:, :-1]], dim=1)
                found = session.run(None, _feed(module, (inputs, *state)))
                log_prob, *state = map(torch.from_numpy, found)
                total -= float(log_prob.gather(2, ids[..., None]).sum())
                before = int(ids[0, -1])
            count += len(piece)
        begin = end
        if count >= MOST_MEASURED:
            break
    return math.exp(total / count)
