"""Trains, evaluates and resumes on a CUDA card that is not there; a program for `FakeCuda`.

`FakeCuda` has loaded fake_cuda.cpp before. A line of stdin is a JSON list, arguments of `lmkit
train` and a fault to make on purpose, or null; a line of stdout is the message of the error that
came of it, or null.

The tensors are fake: they have shapes, dtypes and devices, and no values. An operator that is given
tensors of two devices, or of dtypes that do not go together, raises.
"""

import contextlib
import json
import logging
import os
import sys
import tempfile
import traceback
import warnings
from itertools import islice
from pathlib import Path
from unittest import mock

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torchmetrics import Metric

from lmkit.assembly import build_model, make_data
from lmkit.config.build import build
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.config.trainer import build_trainer
from lmkit.inference import TrainedModel
from lmkit.inference.scoring import predictions
from lmkit.kernels.matmul import onednn_is_exact
from lmkit.model import Reader, Recurrent, RecurrentLayer
from lmkit.run.checkpoints import AtomicCheckpointIO
from lmkit.system import hardware
from lmkit.training.callbacks import StopOnNonFinite
from lmkit.training.callbacks.averaging import WeightAveraging
from lmkit.training.components import make_task
from lmkit.training.task import Task

CARD = torch.device("cuda:0")
STEPS = 3  # of each of the two trainings
PLACED = ("accelerator", "devices", "precision", "strategy", "num_sanity_val_steps")

aten = torch.ops.aten
library = torch.library.Library("aten", "IMPL", "Meta")


def gru_cell(input_gates, hidden_gates, hx, *_):
    return torch.empty_like(hx), hx.new_empty(len(hx), 5 * hx.shape[1])


def gru_cell_backward(grad_hy, workspace, has_bias):
    gates = grad_hy.new_empty(len(grad_hy), 3 * grad_hy.shape[1])
    biases = [gates.new_empty(gates.shape[1]) if has_bias else None for _ in range(2)]
    return gates, torch.empty_like(gates), torch.empty_like(grad_hy), *biases


# PyTorch has them for LSTMs only.
library.impl("_thnn_fused_gru_cell", gru_cell)
library.impl("_thnn_fused_gru_cell_backward", gru_cell_backward)


class Card(CPUAccelerator):
    """What Lightning takes for the accelerator of the card."""

    @staticmethod
    def get_parallel_devices(devices):
        return [CARD] * devices

    def setup_device(self, device):
        pass


class OnCard(SingleDeviceStrategy):
    """Lightning's strategy of one card, to which PyTorch's own `.to` cannot take parameters: they
    would not be tied any more."""

    def model_to_device(self):
        moved = {}
        for module in self.model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and tensor not in moved:
                        moved[tensor] = tensor.detach().to(CARD)
                        if isinstance(tensor, nn.Parameter):
                            moved[tensor] = nn.Parameter(moved[tensor])
                    tensors[name] = moved.get(tensor)
            if isinstance(module, Metric):
                module.to(CARD)
        self.model._device = CARD

    def teardown(self):
        pass  # the weights stay there


PRODUCTS = {
    *(aten.mm.default, aten.bmm.default, aten.addmm.default),
    *(aten._thnn_fused_lstm_cell.default, aten._thnn_fused_gru_cell.default),
}


class Watch(TorchDispatchMode):
    """Notes what the host would wait for, and gives a value where it would read one.

    Raises where a generator is not on its tensor's device, or where the factors of a product have
    several dtypes, at both of which fake tensors do not look.
    """

    def __init__(self):
        super().__init__()
        self.waits = []
        self.trains = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # Elsewhere autograd has taken apart what is made of other operators.
        composite = torch.is_inference_mode_enabled() and function.namespace == "aten"
        if composite and function._can_decompose():
            with self:
                return function.decompose(*args, **kwargs)
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        generator = kwargs.get("generator")
        if generator is not None:
            device = tensors[0].device if tensors else torch.device(kwargs["device"])
            assert generator.device.type == device.type, f"{function}: generator and tensor"
        on_card = "cuda" in devices
        if function in PRODUCTS and on_card:
            dtypes = {tensor.dtype for tensor in tensors}
            assert len(dtypes) == 1, f"{function}: dtypes {dtypes}"
        if function is aten._local_scalar_dense.default:
            if getattr(args[0], "constant", None) is not None:
                return function(*args, **kwargs)
            self.note(on_card, "its value")
            return type_of(args[0].dtype)(1)
        if function is aten.nonzero.default:  # as if all were true
            self.note(on_card, "the number of elements")
            return args[0].new_empty(args[0].numel(), args[0].dim(), dtype=torch.int64)
        if function is aten.equal.default:
            self.note(on_card, "whether they are equal")
            return True
        if function in (aten.index.Tensor, aten._unsafe_index.Tensor):
            args = (args[0], [each for index in args[1] for each in self.numbers(index)])
        if function in (aten._to_copy.default, aten.copy_.default):
            found = function(*args, **kwargs)
            self.note(on_card or found.is_cuda, "a copy", found.device.type, devices)
            return found
        return function(*args, **kwargs)

    def numbers(self, index):
        """An index without bools: fake tensors cannot count how many are true."""
        if index is None or index.dtype != torch.bool:
            return [index]
        self.note(index.is_cuda, "the number of elements")
        every = index.new_empty(index.numel(), dtype=torch.int64)
        return [every] * index.dim()

    def note(self, on_card, what, *to_from):
        if to_from and (to_from[1] == {to_from[0]} or to_from[1] <= {"cuda"} == {to_from[0]}):
            return
        if on_card and self.trains:
            frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename]
            here = next(f for f in reversed(frames[:-2]) if f.filename != __file__)
            self.waits.append(f"{Path(here.filename).name}:{here.name}: {what}")


def type_of(dtype):
    return bool if dtype == torch.bool else float if dtype.is_floating_point else int


class Training(pl.Callback):
    """Tells the watch when windows are trained on, from the second one of a fit to its last."""

    def __init__(self, watch):
        self.watch = watch
        self.windows = 0

    def on_train_batch_start(self, trainer, task, window, index):
        self.windows += 1
        self.watch.trains = self.windows > 1

    def on_validation_start(self, trainer, task):
        self.watch.trains = False


@contextlib.contextmanager
def card():
    """Within this context all tensors are fake, on the card and on the CPU."""
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch.object(FakeTensor, "__deepcopy__", lambda tensor, _: tensor.clone()),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        yield


def make_trainer(config, device, steps, *callbacks):
    precision = config["trainer"]["precision"]
    plugin = Precision()
    if precision == "bf16-mixed" or (
        precision == "16-mixed" and device == CARD
    ):  # a CPU has no fp16
        plugin = MixedPrecision(precision, device.type)
    accelerator, kind = CPUAccelerator(), SingleDeviceStrategy
    if device == CARD:
        accelerator, kind = Card(), OnCard
    strategy = kind(device, accelerator, AtomicCheckpointIO(), plugin)
    node = config["averaging"]
    averaging = [WeightAveraging(build("averaging", node))] if node else []
    node = config["trainer"] | {"max_steps": steps, "log_every_n_steps": 1000}
    node = {key: value for key, value in node.items() if key not in PLACED}
    return build_trainer(
        node,
        strategy=strategy,
        callbacks=[*callbacks, StopOnNonFinite(), *averaging],
        logger=False,
        num_sanity_val_steps=0,
    )


class Windows:
    """A loader of windows that are there; Lightning takes a list for several loaders."""

    def __init__(self, windows, done=0):
        self.windows = list(windows)
        self.done = done  # before the checkpoint

    def __len__(self):
        return len(self.windows)

    def __iter__(self):
        return iter(self.windows[self.done :])


def journey(arguments):
    """Train on the CPU and, fake, on the card; go on there from the CPU's checkpoint; evaluate."""
    answers = {"is_available": lambda _: True, "num_here": lambda _: 1, "fast_bf16": lambda _: True}
    with mock.patch.multiple(hardware, **answers):
        config, _ = check(compose([*arguments, "trainer=gpu"]))
    data = make_data(config)
    data.prepare()
    train = Windows(islice(data.loader("train", train=True), 4 * STEPS + 1))
    valid = Windows(islice(data.loader("valid"), 2))
    precision = config["trainer"]["precision"]
    checkpoint = Path(config["outputs"], "cpu.ckpt")
    trainer = make_trainer(config, torch.device("cpu"), STEPS)
    trainer.fit(make_task(config, data), train, valid)
    trainer.save_checkpoint(checkpoint)
    for steps, begin in ((STEPS, None), (2 * STEPS, checkpoint)):
        task, watch = make_task(config, data), Watch()
        train.done = trainer.fit_loop.total_batch_idx + 1 if begin else 0
        with card(), watch:
            trainer = make_trainer(config, CARD, steps, Training(watch))
            trainer.fit(task, train, valid, ckpt_path=begin)
            assert trainer.global_step == steps
            check_devices(trainer)
        check_waits(watch.waits, precision)
    model, head = build_model(config, data.tokenizer.vocabulary_size)
    with card(), Watch():
        evaluate(TrainedModel(model, head, data.tokenizer, device="cuda", precision=precision))


def check_devices(trainer):
    """Everything that a step computes with stays on the card, weights in fp32."""
    task = trainer.lightning_module
    (optimizer,) = trainer.optimizers
    for name, parameter in task.named_parameters():
        assert (parameter.device, parameter.dtype) == (CARD, torch.float32), name
        for key, value in optimizer.state[parameter].items():
            # The count of steps is on the CPU in optimizers that are not fused.
            if isinstance(value, torch.Tensor) and value.dim():
                assert value.device == CARD, f"{name}: {key}"
    for stage in ("train", "val"):
        for layer in task._readers[stage].state:
            assert all(part.device == CARD and not part.requires_grad for part in layer), stage
    for value in (task.values.sums, task.val_sums.nll_sum, task.val_sums.num_tokens):
        assert value.device == CARD
    if task.model.tie_weights:
        assert task.head.weight is task.model.embedding.weight


def check_waits(waits, precision):
    """Nothing in training waits for the card, but for windows that come to it and the scaler."""
    allowed = ALLOWED + (SCALER if precision == "16-mixed" else ())
    found = sorted({wait for wait in waits if not wait.startswith(allowed)})
    assert not found, "the host waits for the card: " + ", ".join(found)


ALLOWED = (
    "apply_func.py:",  # windows come to the card
    "sampled.py:loss: a copy",  # and the words drawn for each
)
SCALER = ("amp.py:optimizer_step: its value",)  # whether a gradient was infinite


def evaluate(trained):
    """Perplexity, scores and texts."""
    text = "a cat"
    trained.nll(text)
    trained.score(text, protocol="stream")
    size = trained.model.vocabulary_size
    targets = torch.zeros(5, dtype=torch.int64, device=CARD)
    with trained.computing():
        hidden = torch.zeros(5, trained.model.hidden_size, device=CARD)
        trained.head.nll_at(hidden, targets, targets)
        for log_prob in trained.head.log_prob(hidden[None]):
            predictions(log_prob, targets[: len(log_prob)], torch.zeros(size, 2, device=CARD))
    for settings in ({"top_k": 3}, {"top_p": 0.5}):
        trained.generate("a", num_tokens=2, num_samples=2, **settings)


def told(error):
    """An exception and the frames that are lmkit's."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if "site-packages" not in frame.filename]
    lines = [f"{frame.filename}:{frame.lineno}: {frame.line}" for frame in outside]
    return "\n".join([f"{type(error).__name__}: {error}", *lines])


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is printed
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning|torch")
    onednn_is_exact()  # measured once, on real tensors
    for line in sys.stdin:
        arguments, fault = json.loads(line)
        error = None
        with tempfile.TemporaryDirectory() as outputs:
            try:
                with made(fault):
                    journey([*arguments, f"outputs={outputs}"])
            except Exception as raised:
                error = told(raised)
        print(json.dumps(error), file=answers, flush=True)


def embedded_beside_cpu(model, tokens):
    return model.embedding(tokens) * torch.ones(*tokens.shape, 1)


def waiting_step(task, window, index):
    loss = training_step(task, window, index)
    assert float(loss) > 0
    return loss


def where_it_lies(reader, tokens):
    return reader.state or reader.model.initial_state(len(tokens))


def native_of_half(layer, kernel, inputs, state, weights):
    def of_half(inputs, *rest):
        return kernel(inputs.half(), *rest)

    return native(layer, of_half, inputs, state, weights)


training_step, native, Generator = Task.training_step, RecurrentLayer.native, torch.Generator

# What the tests make wrong on purpose.
FAULTS = {
    "a tensor made on the CPU": (Recurrent, "_embedded", embedded_beside_cpu),
    "a value that the host reads": (Task, "training_step", waiting_step),
    "a state left on the CPU": (Reader, "before", where_it_lies),
    "another dtype for a kernel": (RecurrentLayer, "native", native_of_half),
    "a generator of the CPU": (torch, "Generator", lambda device="cpu": Generator()),
}


@contextlib.contextmanager
def made(fault):
    with mock.patch.object(*FAULTS[fault]) if fault else contextlib.nullcontext():
        yield


if __name__ == "__main__":
    main()
