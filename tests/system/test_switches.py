"""What a process computes with, and that whoever calls lmkit in it finds its switches as before."""

import subprocess
import sys

import pytest
import torch
from fitted import Place

import lmkit
from lmkit.analysis.memory_probe import predictions
from lmkit.assembly import make_data
from lmkit.cli import main
from lmkit.inference import TrainedModel
from lmkit.kernels import library
from lmkit.model import LSTM
from lmkit.run import Run
from lmkit.system import threads

SMALL = ("trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.limit_val_batches=1")

# Everything that a process has one of, looked at around each call of a library's user.
SNAPSHOT = """
import ctypes, json, logging, os, random, signal, sys, warnings

import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf.basecontainer import BaseContainer

import lmkit
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.training.estimate import estimate
from lmkit.commands.evaluate import evaluate
from lmkit.commands.train import train
from lmkit.training.callbacks import NonFiniteError
from lmkit.run import Run
from lmkit.inference.text import Text

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]


class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]


libc.mallinfo2.restype = Info


def gives_back():
    '''Whether malloc has a large block from the system, and gives it back when it is freed.'''
    before = libc.mallinfo2().hblks
    block = libc.malloc(256 << 20)
    there = libc.mallinfo2().hblks
    libc.free(block)
    return there == before + 1


def snapshot():
    loggers = {"": logging.getLogger(), **logging.Logger.manager.loggerDict}
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "filled memory": torch.utils.deterministic.fill_uninitialized_memory,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "fp32 products": torch.backends.mkldnn.matmul.fp32_precision,
        "float32 precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()),
        "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomalies": torch.is_anomaly_enabled(),
        "torch's random state": torch.get_rng_state().sum().item(),
        "numpy's random state": str(np.random.get_state()),
        "python's random state": str(random.getstate()),
        "oc.env": id(BaseContainer._resolvers["oc.env"]),
        "hydra": GlobalHydra.instance().is_initialized(),
        "filters of warnings": str(warnings.filters),
        "showing warnings": id(warnings.showwarning),
        "sys.argv": list(sys.argv),
        "excepthook": id(sys.excepthook),
        "streams": [id(sys.stdin), id(sys.stdout), id(sys.stderr)],
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "signals": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
        "malloc": gives_back(),
        **{
            f"logger {name}": (each.level, each.propagate, [str(h) for h in each.handlers])
            for name, each in loggers.items() if isinstance(each, logging.Logger)
        },
    }


changed = []


def call(what, function):
    before = snapshot()
    result = function()
    after = snapshot()
    changed.extend(
        f"{what}: {key} was {before[key]}, is {after[key]}"
        for key in before if before[key] != after[key]
    )
    return result


def config(*more):
    return check(compose([*sys.argv[1:], *more]))[0]


torch.set_num_threads(3)
switches = ["trainer.deterministic=true", "trainer.benchmark=true", "trainer.detect_anomaly=true"]
plain = call("check", config)
switched = call("check of switches", lambda: config(*switches, "run_id=b", "threads=1"))
call("estimate", lambda: estimate(config(), seconds=0.1))
call("train", lambda: train({**plain, "run_id": "a"}, []))
call("train of switches", lambda: train(switched, []))
run = Run.find(plain["outputs"], "a", lambda run: None)
model = call("load", lambda: lmkit.load(run.path, threads=2))
call("score", lambda: model.score("the cat"))
call("generate", lambda: model.generate("the cat", num_tokens=2))
call("evaluate", lambda: evaluate(run, run.config(), text="the cat sat on the mat"))
free = call("load", lambda: lmkit.load(run.path))
sums = free.nll_sums(free.loader(Text.of("the cat sat", free.tokenizer), "document"))
call("half an evaluation", lambda: next(sums))
del sums
def fails():
    try:
        train(config("optimizer.lr=1e30", "run_id=c"), [])
    except NonFiniteError:
        return True


assert call("a training that fails", fails)
print("END")
print(*changed, sep="\\n", end="")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


def test_a_process_is_left_as_it_was(place: Place) -> None:
    settings = [each for each in place.settings if not each.startswith(("threads=", "kernels="))]
    done = subprocess.run(
        [sys.executable, "-c", SNAPSHOT, *settings, *SMALL], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rpartition("END\n")[2] == ""


def measured(place: Place, command: str) -> None:
    outputs = f"outputs={place.outputs}"
    chosen = ["kernels=torch", "threads=2"]
    run = place.outputs / "tiny" / "computes"
    if command != "train" and not run.exists():
        measured(place, "train")
    if command == "train":
        settings = [s for s in place.settings if not s.startswith(("callbacks.samples", "threads"))]
        assert main([command, *settings, *SMALL, *chosen, "run_id=computes"]) == 0
    elif command == "load":
        trained = lmkit.load(run, kernels="torch", threads=2)
        trained.nll("the cat")
        trained.score("the cat")
        trained.generate("the cat", num_tokens=2)
    elif command == "analyze":
        config = Run(run).config()
        store = make_data(config).prepared.stores["test"]
        predictions(TrainedModel.load(Run(run), config), store)
    else:
        text = ["num_tokens=2"] if command == "generate" else ["text=the cat"]
        assert main([command, "computes", outputs, *chosen, *text]) == 0


@pytest.mark.parametrize("command", ["train", "evaluate", "score", "generate", "analyze", "load"])
def test_kernels_and_threads_hold_wherever_a_model_computes(
    place: Place, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    forward = LSTM.forward

    def watched(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append((library._in_use, torch.get_num_threads()))
        return forward(*given)

    monkeypatch.setattr(LSTM, "forward", watched)
    with threads.use(3):
        measured(place, command)
        assert torch.get_num_threads() == 3
    assert set(seen) == {("torch", 2)}
