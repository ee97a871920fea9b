"""The task through a real Lightning trainer and by hand, against loops over documents."""

from functools import partial

import numpy as np
import pytest
import torch
from in_memory import EOS, VOCABULARY, Text, loader
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.plugins import MixedPrecision
from quiet_trainer import Collected, make_trainer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils._pytree import tree_leaves, tree_map

from lmkit.head import FullSoftmax
from lmkit.model import LSTM, Window
from lmkit.optim import WarmupCosine, WarmupLinear
from lmkit.training.callbacks import StopOnNonFinite
from lmkit.training.task import Task


def make_task(lr=0.5, scheduler=lambda optimizer, num_steps: None, **model):
    torch.manual_seed(1)
    lstm = LSTM(VOCABULARY, embedding_size=8, hidden_size=8, init_range=1.0, **model)
    head = FullSoftmax(8, VOCABULARY)
    return Task(lstm, head, lambda parameters: torch.optim.SGD(parameters, lr=lr), scheduler)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_fp16_gradients_are_clipped_out_of_their_scale(algorithm):
    """A fused optimizer would take the scale out of them by itself, but later."""
    steps = []
    for fused in (False, True):
        task = make_task()
        task.model = Window(VOCABULARY, embedding_size=8, hidden_size=8, context=2, init_range=1.0)
        task.make_optimizer = partial(torch.optim.SGD, lr=0.5, fused=fused)
        trainer = make_trainer(
            max_steps=1,
            limit_val_batches=0,
            gradient_clip_val=0.05,
            gradient_clip_algorithm=algorithm,
            plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))],
        )
        before = [parameter.detach().clone() for parameter in task.parameters()]
        trainer.fit(task, loader(Text([9, 1, 4, 13, 2, 6, 8]), bptt=3), [])
        after = [parameter.detach() for parameter in task.parameters()]
        steps.append([a - b for a, b in zip(after, before, strict=True)])
    for one, other in zip(*steps, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)
    if algorithm == "norm":
        norm = torch.nn.utils.get_total_norm(steps[1])
        assert float(norm) == pytest.approx(0.5 * 0.05, rel=1e-3)


def slow_nll(task, documents, carry=False):
    """Mean nll by a plain nn.LSTM with the same weights, one token after another."""
    layers = task.model.layers
    lstm = torch.nn.LSTM(8, 8, len(layers), batch_first=True)
    for index, layer in enumerate(layers):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(lstm, f"{name}_l{index}").data.copy_(getattr(layer, name))
    total, count, state, previous = 0.0, 0, None, EOS
    for document in documents:
        if not carry:
            state, previous = None, EOS
        for target in document.tolist():
            with torch.no_grad():
                hidden, state = lstm(task.model.embedding(torch.tensor([[previous]])), state)
                logits = hidden[0, 0] @ task.head.weight.T + task.head.bias
            total -= float(logits.log_softmax(0)[target])
            count += 1
            previous = target
    return total / count


@pytest.mark.parametrize("num_lanes", [1, 3, 8])
@pytest.mark.parametrize("bptt", [2, 7, 100])
def test_document_nll_is_that_of_the_slow_loop(num_lanes, bptt):
    text, task = Text([9, 1, 4, 13, 2, 6]), make_task()
    windows = loader(text, seed=None, num_lanes=num_lanes, bptt=bptt)
    (result,) = make_trainer().validate(task, windows, verbose=False)
    assert result["val/nll"] == pytest.approx(slow_nll(task, text.documents()), abs=1e-5)


@pytest.mark.parametrize("bptt", [2, 7, 100])
def test_stream_nll_in_one_lane_is_that_of_the_slow_loop(bptt):
    text, task = Text([9, 1, 4, 13, 2, 6]), make_task()
    windows = loader(text, seed=None, protocol="stream", num_lanes=1, bptt=bptt)
    (result,) = make_trainer().test(task, windows, verbose=False)
    slow = slow_nll(task, text.documents(), carry=True)
    assert result["test/nll"] == pytest.approx(slow, abs=1e-5)
    assert result["test/perplexity"] == pytest.approx(np.exp(slow), rel=1e-4)


def window_gradients(task, windows, divide=1):
    """Summed gradients over windows, each loss divided as Lightning or DDP would."""
    task.zero_grad()
    for window in windows:
        (task.training_step(window, window.index) / divide).backward()
    return [p.grad.clone() for p in task.parameters()]


@pytest.mark.parametrize("protocol", ["document", "stream"])
def test_gradients_do_not_depend_on_the_number_of_processes(protocol):
    text, task = Text([9, 1, 4, 13, 2, 6, 8]), make_task()
    whole = window_gradients(task, loader(text, protocol=protocol))
    shares = []
    for rank in range(2):
        share = loader(text, protocol=protocol, rank=rank, world_size=2)
        shares.append(window_gradients(task, share, divide=2))
    for one, parts in zip(whole, zip(*shares, strict=True), strict=True):
        torch.testing.assert_close(sum(parts), one, atol=1e-6, rtol=1e-5)


def test_accumulated_gradient_is_that_of_the_mean_over_all_its_tokens():
    text, task = Text([9, 1, 4, 13, 2, 6, 8]), make_task()
    windows = list(loader(text, accumulate=3))[:3]
    accumulated = window_gradients(task, windows, divide=3)
    counts = [w.num_targets for w in windows]
    assert len(set(counts)) > 1, "else a mean of means would pass"
    plain = [w._replace(weight=w.mask.float() / sum(counts)) for w in windows]
    for one, other in zip(accumulated, window_gradients(task, plain), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_rate_of_an_update_follows_the_drawn_lengths(accumulate, clip, momentum):
    """SGD by hand, whose rate is lr times the mean length over bptt, after clipping."""
    text = Text([9, 1, 4, 13, 2, 6, 8, 30, 22])
    settings = {"bptt": 7, "variable_bptt": True, "num_lanes": 2, "accumulate": accumulate}
    task, slow = make_task(), make_task()
    task.make_optimizer = partial(torch.optim.SGD, lr=0.5, momentum=momentum)
    trainer = make_trainer(
        max_epochs=1,
        limit_val_batches=0,
        gradient_clip_val=clip,
        accumulate_grad_batches=accumulate,
    )
    trainer.fit(task, loader(text, **settings), [])
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5
    optimizer = torch.optim.SGD(slow.parameters(), lr=0.5, momentum=momentum)
    windows = list(loader(text, **settings))
    assert len({window.tokens.shape[1] for window in windows}) > 2
    for begin in range(0, len(windows), accumulate):
        group = windows[begin : begin + accumulate]
        optimizer.zero_grad()
        for window in group:
            output = slow.reader("train", window).read(window.tokens, window.resets)
            weight = window.weight / accumulate
            slow.head.loss(output.hidden, window.targets, weight).loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(slow.parameters(), clip)
        mean = sum(window.tokens.shape[1] for window in group) / len(group)
        optimizer.param_groups[0]["lr"] = 0.5 * mean / 7
        optimizer.step()
    for one, other in zip(task.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_training_values_are_means_over_the_tokens_since_the_last_row(tmp_path):
    text = Text([9, 1, 4, 13, 2, 6, 8])
    logger = Collected(tmp_path)
    trainer = make_trainer(max_epochs=1, logger=logger, log_every_n_steps=2)
    task = make_task(lr=0.0)
    trainer.fit(task, loader(text, bptt=3), loader(text, seed=None))
    twin = make_task(lr=0.0)
    expected, total, count = [], 0.0, 0
    for window in loader(text, bptt=3):
        with torch.no_grad():
            nll = twin.head.nll(
                twin.reader("train", window).read(window.tokens, window.resets).hidden,
                window.targets,
            )
        total += float(nll[window.mask].sum())
        count += window.num_targets
        if window.index % 2:
            expected.append((window.index + 1, total / count))
            total, count = 0.0, 0
    rows = [(step, row["train/nll"]) for step, row in logger.rows if "train/nll" in row]
    assert len(rows) == len(expected) > 1
    for (step, nll), (expected_step, expected_nll) in zip(rows, expected, strict=True):
        assert step == expected_step
        assert nll == pytest.approx(expected_nll, rel=1e-5)
    (validated,) = [row for _, row in logger.rows if "val/nll" in row]
    assert validated["val/nll"] == pytest.approx(slow_nll(task, text.documents()), abs=1e-5)
    assert task.tokens_seen == text.num_tokens


def test_a_skipped_update_is_the_same_row_for_every_logger(tmp_path):
    task, step = make_task(), Task.training_step
    loggers = [Collected(tmp_path), Collected(tmp_path)]
    task.training_step = lambda window, batch_idx: (
        step(task, window, batch_idx) * (float("nan") if batch_idx == 1 else 1)
    )
    trainer = make_trainer(
        max_steps=3,
        limit_val_batches=0,
        log_every_n_steps=1,
        logger=loggers,
        callbacks=[StopOnNonFinite(action="skip")],
    )
    trainer.fit(task, loader(Text([9, 1, 4, 13, 2, 6, 8]), bptt=3), [])
    (one,), (other,) = ([m for _, m in each.rows if "train/skipped" in m] for each in loggers)
    assert [step for step, m in loggers[0].rows if "train/nll" in m] == [1, 3]  # 2 has no tokens
    assert one is other  # by which JsonlLogger.row knows it, with the seconds of the first


def test_after_a_skipped_update_the_state_has_no_number_of_its_window():
    task, step = make_task(), Task.training_step

    def training_step(window, batch_idx):
        loss = step(task, window, batch_idx)
        if batch_idx != 1:
            return loss
        reader = task._readers["train"]
        reader.state = tree_map(lambda each: each * torch.nan, reader.state)
        return loss * torch.nan

    task.training_step = training_step
    skipping = StopOnNonFinite(action="skip")
    trainer = make_trainer(max_steps=5, limit_val_batches=0, callbacks=[skipping])
    trainer.fit(task, loader(Text([40, 38]), protocol="stream", num_lanes=2), [])
    assert skipping.skipped == 1
    assert all(parameter.isfinite().all() for parameter in task.parameters())
    assert all(each.isfinite().all() for each in tree_leaves(task._readers["train"].state))


def test_validations_before_the_training_are_not_the_newest():
    task, seen = make_task(), []
    look = LambdaCallback(
        on_sanity_check_end=lambda *_: seen.append((dict(task.validated), task._unseen))
    )
    trainer = make_trainer(max_steps=1, num_sanity_val_steps=2, callbacks=[look])
    text = Text([9, 1, 4])
    trainer.fit(task, loader(text), loader(text, seed=None))
    assert seen == [({}, False)]


def test_the_training_state_is_not_disturbed_by_validation():
    text = Text([40, 38])
    losses = []
    for every in (1, 100):
        torch.manual_seed(0)
        task = make_task()
        trainer = make_trainer(max_steps=12, val_check_interval=every, check_val_every_n_epoch=None)
        trainer.fit(task, loader(text, num_lanes=2), loader(text, seed=None, num_lanes=1))
        losses.append([p.detach().clone() for p in task.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


@pytest.mark.parametrize(
    ("schedule", "middle"), [(WarmupCosine, 0.5 * (1 + np.cos(np.pi / 3))), (WarmupLinear, 2 / 3)]
)
def test_schedules_warm_up_and_decay_by_step(schedule, middle):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = schedule(optimizer, 12, warmup_steps=3, min_ratio=0.1)
    rates = []
    for _ in range(14):
        rates.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        scheduler.step()
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[6] == pytest.approx(0.1 + 0.9 * middle)
    assert rates[12:] == pytest.approx([0.1, 0.1])


def test_plateau_divides_the_rate_when_validation_stops_improving():
    def scheduler(optimizer, num_steps):
        optimizer.param_groups[0]["maximize"] = True  # so that it never improves
        return ReduceLROnPlateau(optimizer, factor=0.25, patience=0)

    text, task = Text([20, 20]), make_task(lr=0.5, scheduler=scheduler)
    trainer = make_trainer(max_epochs=3)
    trainer.fit(task, loader(text, num_lanes=2), loader(text, seed=None, num_lanes=1))
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5 / 4**2
