"""What cuDNN and a GPU must do as the CPU does; skipped where there is none."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from fitted import Place, assert_same
from journey import LIMIT, assert_same_state, last, lmkit, rows, start, wait_for_rows

from lmkit.config.groups import CONF, group_options
from lmkit.head import FullSoftmax
from lmkit.model.dropout import Masks, dropout
from lmkit.model.elman import ElmanLayer
from lmkit.model.gru import GRULayer
from lmkit.model.lstm import LSTMLayer

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

PRECISIONS = {
    "fp32": (torch.float32, 1e-5),
    "tf32": (torch.float32, 2e-3),
    "fp16": (torch.float16, 2e-3),
    "bf16": (torch.bfloat16, 2e-2),
}


@pytest.fixture(params=PRECISIONS)
def precision(request):
    """Type of the products and the error that rounding in it makes."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=request.param == "tf32"):
        yield PRECISIONS[request.param]


def outputs(layer, inputs, resets, dtype):
    state = layer.initial_state(len(inputs))
    with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
        hidden, _ = layer(inputs, resets, state)
    return hidden.float()


@pytest.mark.parametrize("kind", [LSTMLayer, GRULayer, ElmanLayer])
def test_a_reset_within_a_window_is_exact_forward_and_backward(kind, precision):
    """A document after a reset reads as if alone, and not a bit goes across, in any precision."""
    dtype, tolerance = precision
    torch.manual_seed(0)
    layer = kind(24, 40).to(DEVICE)
    inputs = torch.randn(5, 30, 24, device=DEVICE, requires_grad=True)
    resets = torch.zeros(5, 30, dtype=torch.bool, device=DEVICE)
    resets[:, 11] = True
    hidden = outputs(layer, inputs, resets, dtype)
    after = hidden[:, 12:]
    alone = outputs(layer, inputs[:, 12:], resets[:, 12:], dtype)
    torch.testing.assert_close(after, alone, atol=tolerance, rtol=0)
    (grad,) = torch.autograd.grad(after.sum(), inputs, retain_graph=True)
    assert (grad[:, :11] == 0).all()
    assert (grad[:, 12:] != 0).any()
    changed = inputs.detach().clone()
    changed[:, :11] += 1
    assert torch.equal(outputs(layer, changed, resets, dtype)[:, 12:], after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_fused_loss_is_that_of_the_cpu(dtype):
    torch.manual_seed(0)
    head = FullSoftmax(40, 301, chunk_size=17)
    hidden, weight = torch.randn(4, 13, 40), torch.rand(4, 13) / 52
    targets = torch.randint(301, (4, 13))
    found = []
    for device in ("cpu", DEVICE):
        here = head.to(device)
        rows = hidden.to(device).requires_grad_()
        low = dtype != torch.float32 and device == DEVICE
        with torch.autocast(device, dtype, enabled=low):
            loss = here.loss(rows, targets.to(device), weight.to(device)).loss
        grads = torch.autograd.grad(loss, [rows, *here.parameters()])
        found.append([loss.detach().cpu(), *(grad.float().cpu() for grad in grads)])
    for one, other in zip(*found, strict=True):
        error = (one - other).norm() / one.norm()
        assert error < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("shared", [(), (1,)])
def test_masks_are_those_of_all_lanes_cut_to_the_process(shared):
    tensor = torch.ones(6, 5, 40, device=DEVICE)

    def masked(first, rows):
        with Masks(5, 2, 9, first, 6).use():
            return dropout(rows, 0.5, True, "a", shared)

    shares = [masked(first, tensor[first : first + 2]) for first in (0, 2, 4)]
    whole = masked(0, tensor)
    assert torch.equal(torch.cat(shares), whole)
    assert torch.equal(whole, whole[:, :1].expand_as(whole)) == bool(shared)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, settings):
    """An undisturbed run on the GPU in fp32."""
    place = tmp_path_factory.mktemp("cuda")
    done = lmkit("train", *settings, "trainer=gpu", "run_id=whole", cwd=place)
    assert "is not deterministic" not in done.stderr
    return place / "outputs" / "tiny" / "whole"


def losses(run):
    return [row["train/nll"] for row in rows(run) if "train/nll" in row]


def test_a_training_has_the_losses_of_one_on_the_cpu(settings, whole):
    """Without dropout, whose masks each device draws in a way of its own."""
    undropped = [*settings, "model.dropout=0", "trainer.max_epochs=1"]
    place = whole.parents[2]
    for trainer in ("cpu", "gpu"):
        lmkit("train", *undropped, f"trainer={trainer}", f"run_id={trainer}", cwd=place)
    cpu, gpu = (losses(whole.parent / trainer) for trainer in ("cpu", "gpu"))
    assert len(cpu) > 10
    assert gpu == pytest.approx(cpu, abs=1e-4)


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        *(("lstm", precision) for precision in ("32-true", "16-mixed", "bf16-mixed")),
        *((model, "bf16-mixed") for model in ("gru", "elman", "window")),
    ],
)
def test_a_killed_training_resumes_bit_for_bit(tmp_path, settings, model, precision):
    changed = [*settings, "trainer=gpu", f"model={model}", f"trainer.precision={precision}"]
    changed += ["model.dropout=0.3", "trainer.max_epochs=2"]
    lmkit("train", *changed, "run_id=whole", cwd=tmp_path)
    runs = tmp_path / "outputs" / "tiny"
    process = start("train", *changed, "run_id=killed", cwd=tmp_path)
    wait_for_rows(process, runs / "killed", 4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lmkit("resume", "killed", cwd=tmp_path)
    assert rows(runs / "killed") == rows(runs / "whole")
    assert_same_state(last(runs / "killed"), last(runs / "whole"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("graphs"))


PLAIN_SGD = ("optimizer=sgd", "model.dropout=0.3", "trainer.precision=bf16-mixed")
ADAM = ("optimizer=adam", *PLAIN_SGD[1:], "model.tie_weights=false")
EVERY_DROPOUT = (
    *("model.word_dropout=0.1", "model.weight_dropout=0.5", "model.locked_dropout=true"),
    "regularizers=[ar,tar]",
)


@pytest.mark.parametrize(
    "more",
    [
        *[(), PLAIN_SGD, (*ADAM, *EVERY_DROPOUT), (*ADAM, "averaging=ema")],
        *[
            (*ADAM, f"model={name}")
            for name in group_options([CONF])["model"]
            if name not in ("ngram", "window", "mogrifier")
        ],
        (*ADAM, "model=window", "~model.num_layers"),
        (*ADAM, "model=mogrifier", "model.rank=2"),
        *[(*ADAM, f"head={name}") for name in ("mixture", "projected", "sampled", "adaptive")],
        (*ADAM, "model.residual=rms_norm", "model.expansion=1.5"),
        (*ADAM, "model.zoneout=0.1"),
    ],
    ids=" ".join,
)
def test_a_graph_computes_what_its_operators_compute_one_by_one(place, more):
    """Bit for bit, with its validations; some heads cannot be captured, and train as ever."""
    settings = ("trainer.accelerator=cuda", *more)
    assert_same(place.fit(*settings, "kernels=graphs"), place.fit(*settings, "kernels=torch"))


def test_a_run_computes_on_the_cpu_what_it_computes_on_the_gpu(whole):
    place, found = whole.parents[2], {}
    command = ["score", "whole", "text=the cat sat on the mat"]
    for device in ("cuda", "cpu"):
        more = [f"trainer.accelerator={device}", "trainer.precision=32-true"]
        evaluated = lmkit("evaluate", "whole", *more, "format=json", cwd=place).stdout
        scored = lmkit(*command, *more, cwd=place).stdout.splitlines()
        nll = [result["nll"] for result in json.loads(evaluated)["results"]]
        found[device] = nll + [json.loads(line)["nll"] for line in scored]
    assert len(found["cpu"]) > 20
    assert found["cuda"] == pytest.approx(found["cpu"], abs=1e-4)


def test_one_process_over_nccl_is_the_run_without_processes(settings, whole):
    place = whole.parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    arguments = ["-m", "lmkit", "train", *settings, "trainer=ddp", "run_id=nccl"]
    done = subprocess.run(
        [*command, *arguments], cwd=place, capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr
    assert rows(whole.parent / "nccl") == rows(whole)
    assert_same_state(last(whole.parent / "nccl"), last(whole))
