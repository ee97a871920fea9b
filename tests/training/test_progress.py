"""What is shown on stderr, on a terminal and in a file, and how seldom the device is asked."""

import io
import math

import pytest
import torch
from rich.console import Console
from torch import nn

from lmkit.training.callbacks.progress import Progress, TimeLeft, describe, summary


class Trainer:
    """A trainer at a step, as far as Progress looks."""

    is_global_zero = True
    sanity_checking = False
    max_epochs = 2
    estimated_stepping_batches = 200
    global_step = 0
    num_training_batches = 100
    accumulate_grad_batches = 1
    current_epoch = 0
    callback_metrics = {"val/nll": torch.tensor(5.0), "val/perplexity": torch.tensor(148.4)}  # noqa: RUF012

    class state:  # noqa: N801
        fn = "fit"


class Module:
    """Counts how often it is asked for values."""

    asked = 0

    def running(self) -> dict[str, float]:
        self.asked += 1
        return {"train/nll": 5.5, "train/perplexity": 244.7, "train/tokens_per_second": 2400.4}


def train(shown: Progress, clock: list[float], steps: int, seconds: float) -> Module:
    trainer, module = Trainer(), Module()
    shown.on_train_start(trainer, module)
    for step in range(1, steps + 1):
        trainer.global_step = step
        clock[0] += seconds
        shown.on_train_batch_end(trainer, module, None, None, step)
    shown.on_validation_start(trainer, module)
    shown.on_validation_end(trainer, module)
    shown.on_train_end(trainer, module)
    return module


def test_plain_lines_elsewhere(clock):
    shown = Progress()
    shown.console = Console(file=io.StringIO(), width=40)
    module = train(shown, clock, steps=100, seconds=0.25)
    assert module.asked == 2
    assert shown.console.file.getvalue().splitlines() == [
        "epoch 1/2  step 40/200  loss 5.500  perplexity 244.70  2,400 tokens/s  0:00:40 left",
        "epoch 1/2  step 80/200  loss 5.500  perplexity 244.70  2,400 tokens/s  0:00:30 left",
        "epoch 1/2  step 100/200  validation  loss 5.000  perplexity 148.40",
    ]


def test_a_bar_on_a_terminal(clock):
    shown = Progress()
    shown.console = Console(file=io.StringIO(), width=120, force_terminal=True)
    module = train(shown, clock, steps=100, seconds=0.0625)
    assert module.asked == 12  # 6.25 seconds, twice a second
    text = shown.console.file.getvalue()
    assert "epoch 1/2" in text
    assert "100/200" in text
    assert "loss 5.500  perplexity 244.70  2,400 tokens/s" in text
    assert "validation  loss 5.000" in text
    assert text.endswith("\x1b[?25h")  # the cursor is back


def test_everything_goes_to_stderr():
    assert Progress().console.stderr


def test_describe_leaves_out_what_there_is_not():
    assert describe({"val/nll": 1.0, "val/bits_per_byte": 2.0}, "val/") == (
        "loss 1.000  2.000 bits/byte"
    )
    assert describe({}, "val/") == ""


def test_describe_tells_the_nll_from_a_loss_of_more_terms():
    values = {"train/nll": 1.0, "train/loss": 1.5, "train/ar": 0.5, "train/perplexity": 2.7}
    assert describe(values, "train/") == "loss 1.500  nll 1.000  perplexity 2.70"


def test_summary_counts_shared_parameters_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(1000, 20)
            self.decoder = nn.Linear(20, 1000)
            self.decoder.weight = self.embedding.weight

    table = summary(Tied())
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows == [
        ("embedding", "Embedding", "20,000"),
        ("decoder", "Linear", "1,000 + shared"),
        ("total", "", "21,000"),
    ]


def test_no_time_is_told_before_there_is_enough_to_go_by():
    pace = TimeLeft(1000, 0.0)  # of a run that goes on
    now = 100.0  # the first step compiles
    for step in range(1001, 1013):
        pace.step(step, now)
        assert pace.left(100, 0) is None
        now += 0.5
    pace.step(1013, now)
    assert pace.left(100, 0) == pytest.approx(50)
    assert pace.left(math.inf, 0) is None


def test_a_validation_counts_as_one_and_not_as_a_slow_step():
    pace = TimeLeft(0, 0.0)
    now = 0.0
    for step in range(1, 41):
        pace.resume(now)
        now += 1.0
        pace.step(step, now)
        if step % 20 == 0:
            pace.pause()
            now += 30.0
    pace.resume(now)
    assert pace.left(60, 3) == pytest.approx(60 + 90)


def test_a_run_that_goes_on_begins_where_it_was(clock):
    shown = Progress()
    shown.console = Console(file=io.StringIO(), width=120, force_terminal=True)
    trainer, module = Trainer(), Module()
    trainer.global_step = 150
    shown.on_train_start(trainer, module)
    clock[0] += 1.0
    trainer.global_step = 151
    shown.on_train_batch_end(trainer, module, None, None, 151)
    assert shown._bar.tasks[0].completed == 151
    assert "tokens/s" not in shown._bar.tasks[0].fields["values"]
    assert shown._bar.tasks[0].fields["left"] == ""
    shown.on_train_end(trainer, module)
