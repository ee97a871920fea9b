"""The CUDA path without a card: shapes, dtypes and devices of a training, a resume, an evaluation.

Not covered: cuDNN, for whose kernels PyTorch's own stand in; values; several processes; the
checkpoint callback's random state of a card.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_cuda import FakeCuda, build

from lmkit.config.groups import CONF, group_options

COMPILER = shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ on the PATH")

OPTIONS = group_options([CONF])
DROPOUT = ["model.dropout=0.5", "model.word_dropout=0.5", "model.weight_dropout=0.5"]
BF16, FP16 = "trainer.precision=bf16-mixed", "trainer.precision=16-mixed"
ELMAN = "model=elman model.nonlinearity="

# Every option of the group but n-grams, which are counted on the CPU.
MODELS = [name for name in OPTIONS["model"] if name != "ngram"]
# Nor the adaptive softmax: how large its products are follows from values, which none here has.
HEADS = [name for name in OPTIONS["head"] if name not in ("ngram", "adaptive")]
SMALL = {"mogrifier": " model.rank=4"}  # what must follow from the small sizes here

CASES = [
    *(f"model={name}{SMALL.get(name, '')}" for name in MODELS),
    *(f"model={name} {BF16}" for name in ("lstm", "gru", "qrnn", "slstm", "mlstm")),
    *(f"head={name} {FP16} model.tie_weights=false" for name in HEADS),
    *(f"optimizer={name} {FP16}" for name in OPTIONS["optimizer"]),
    *(f"averaging={name}" for name in OPTIONS["averaging"] if name != "none"),
    *(f"regularizers={name}" for name in OPTIONS["regularizers"] if name != "none"),
    " ".join([f"{ELMAN}relu", *DROPOUT]),
    " ".join([f"{ELMAN}sigmoid", BF16, *DROPOUT, "model.locked_dropout=true"]),
    " ".join(["model=lstm", BF16, *DROPOUT, "model.locked_dropout=true"]),
    " ".join(["model=gru", FP16, *DROPOUT]),
    *(f"model={name} {FP16} model.zoneout=0.1" for name in ("lstm", "gru", "elman")),
    f"model=lstm model.zoneout=0.1 model.cell_zoneout=0.5 {BF16}",
    *(
        f"model={name} model.state_dropout=0.3 model.cap_input_gate=true model.sum_layers=true"
        for name in ("lstm", "mogrifier model.rank=4")
    ),
    "model=lstm model.hidden_sizes=[24,16] head.bias=false head.chunk_size=3",
    "trainer.gradient_clip_algorithm=value trainer.accumulate_grad_batches=2",
]

# By the fault, a part of the message: each must be found.
FAULTS = {
    "a tensor made on the CPU": "FakeTensorDeviceMismatchError",
    "a state left on the CPU": "not at the same device",
    "a value that the host reads": "the host waits for the card",
    "another dtype for a kernel": "dtypes",
    "a generator of the CPU": "generator and tensor",
}


@pytest.fixture(scope="module")
def card(tmp_path_factory) -> Iterator[FakeCuda]:
    library = tmp_path_factory.mktemp("fake_cuda") / "fake_cuda.so"
    build(COMPILER, library)
    card = FakeCuda(library)
    yield card
    card.close()


@pytest.fixture(scope="module")
def tiny(text: Path) -> list[str]:
    return [
        *("data=files", f"data.path={text}", "data.unit=paragraph", "tokenizer=characters"),
        *("data.batch_size=3", "data.bptt=4", "model.embedding_size=16", "model.hidden_size=16"),
        *("trainer.precision=32-true", "model.dropout=0.1"),
    ]


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_on_another_device_nor_waited_for(card, tiny, case):
    error = card.error([*tiny, *case.split()])
    assert error is None, error


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(card, tiny, fault):
    error = card.error(tiny, fault)
    assert error is not None
    assert FAULTS[fault] in error
