"""AWD-LSTM (Merity et al. 2018) through the trainer against a plain loop of its equations."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from in_memory import VOCABULARY, Text, loader
from quiet_trainer import Collected, make_trainer

from lmkit.head import FullSoftmax
from lmkit.model import LSTM, Masks, detached
from lmkit.model.dropout import masked
from lmkit.optim import NTASGD
from lmkit.regularizers import ActivationRegularization, TemporalActivationRegularization
from lmkit.training.callbacks.averaging import WeightAveraging
from lmkit.training.task import Task

SIZE, HIDDEN, SEED = 8, 12, 7
INPUT, BETWEEN, OUTPUT, WORDS, WEIGHTS = 0.3, 0.2, 0.4, 0.1, 0.5
LR, DECAY, CLIP, BPTT, ALPHA, BETA = 4.0, 1e-4, 0.25, 12, 2.0, 1.0
VALIDATE_EVERY, INTERVAL = 5, 2


def windows(train=True):
    text = Text([40, 31, 57, 22, 80, 64, 35, 90, 18, 47], seed=0 if train else 1)
    settings = {"protocol": "stream", "num_lanes": 3, "bptt": BPTT}
    if not train:
        return loader(text, seed=None, **settings)
    return loader(text, seed=SEED, variable_bptt=True, **settings)


def build():
    torch.manual_seed(1)
    model = LSTM(
        VOCABULARY,
        embedding_size=SIZE,
        hidden_size=HIDDEN,
        num_layers=3,
        dropout=BETWEEN,
        embedding_dropout=INPUT,
        output_dropout=OUTPUT,
        locked_dropout=True,
        word_dropout=WORDS,
        weight_dropout=WEIGHTS,
        tie_weights=True,
        init_range=0.1,
    )
    return model, FullSoftmax(SIZE, VOCABULARY, model.embedding)


class Plain:
    """The same weights in a loop of formulas; masks by their names, as the model documents them."""

    def __init__(self, model, head):
        self.matrix = model.embedding.weight.detach().clone().requires_grad_()
        self.bias = head.bias.detach().clone().requires_grad_()
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self.layers = [
            [getattr(layer, name).detach().clone().requires_grad_() for name in names]
            for layer in model.layers
        ]
        self.parameters = [self.matrix, *(p for layer in self.layers for p in layer), self.bias]
        self.seen = []  # the weights after each update of which the average is made

    def __call__(self, tokens, state, place=None):
        """Hidden vectors after and before dropout, and the next state; place: of the masks, None in
        evaluation."""

        def mask(shape, p, name):
            if place is None:
                return torch.ones(shape)
            key = Masks(SEED, *place).key(name)
            return masked(torch.ones(shape), key, 0, round(p * 2**32), 1 / (1 - p))

        lanes = len(tokens)
        hidden = (self.matrix * mask((VOCABULARY,), WORDS, "words")[:, None])[tokens]
        after = []
        for number, (w_ih, w_hh, b_ih, b_hh) in enumerate(self.layers):
            p = BETWEEN if number else INPUT
            hidden = hidden * mask((lanes, 1, hidden.shape[2]), p, number)
            dropped = w_hh * mask(w_hh.shape, WEIGHTS, f"layers.{number}.weight_hh")
            h, c = state[number]
            outputs = []
            for x in hidden.unbind(1):
                i, f, g, o = (x @ w_ih.T + b_ih + h @ dropped.T + b_hh).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                outputs.append(h)
            hidden = torch.stack(outputs, 1)
            after.append((h, c))
        return hidden * mask((lanes, 1, SIZE), OUTPUT, 3), hidden, detached(after)

    def nll(self, hidden, window):
        logits = hidden @ self.matrix.T + self.bias
        return F.cross_entropy(logits[window.mask], window.targets[window.mask])

    def zero(self, lanes):
        sizes = [w_hh.shape[1] for _, w_hh, _, _ in self.layers]
        return [(torch.zeros(lanes, n), torch.zeros(lanes, n)) for n in sizes]

    def evaluate(self):
        weights, total, count, state = [p.detach().clone() for p in self.parameters], 0.0, 0, None
        with torch.no_grad():
            if self.seen:
                for parameter, every in zip(
                    self.parameters, zip(*self.seen, strict=True), strict=True
                ):
                    parameter.copy_(torch.stack(every).mean(0))
            for window in windows(train=False):
                lanes = len(window.tokens)
                state = self.zero(lanes) if state is None else state
                state = [(h[:lanes], c[:lanes]) for h, c in state]
                hidden, _, state = self(window.tokens, state)
                total += float(self.nll(hidden, window)) * int(window.mask.sum())
                count += int(window.mask.sum())
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.copy_(weight)
        return total / count


def by_hand(epochs):
    """nll after each update and each validation, and at which validation averaging has begun."""
    plain, train = Plain(*build()), windows()
    optimizer = torch.optim.SGD(plain.parameters, lr=LR, weight_decay=DECAY)
    trained, validated, begun, step = [], [], None, 0
    for _ in range(epochs):
        state = plain.zero(3)
        for window in train:
            hidden, raw, state = plain(window.tokens, state, (window.epoch, window.index))
            count = window.mask.sum()
            nll = plain.nll(hidden, window)
            ar = (hidden.square().mean(-1) * window.mask).sum() / count
            change = (raw[:, 1:] - raw[:, :-1]).square().mean(-1)
            tar = (change * (window.mask[:, 1:] & window.mask[:, :-1])).sum() / count
            optimizer.zero_grad()
            (nll + ALPHA * ar + BETA * tar).backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters, CLIP)
            optimizer.param_groups[0]["lr"] = LR * window.tokens.shape[1] / BPTT
            optimizer.step()
            if begun is not None:
                plain.seen.append([p.detach().clone() for p in plain.parameters])
            trained.append(nll.item())
            step += 1
            if step % VALIDATE_EVERY:
                continue
            value = plain.evaluate()
            before = validated[:-INTERVAL]
            if begun is None and before and value > min(before):
                begun = len(validated)
            validated.append(value)
    return trained, validated, begun


def test_awd_lstm_is_a_plain_loop_of_its_equations(tmp_path):
    """Losses of hundreds of updates and of validations before and after NT-ASGD has begun, with
    windows of drawn lengths and rates."""
    epochs = 12
    trained, validated, begun = by_hand(epochs)
    assert len(trained) > 150
    assert 3 < begun < len(validated) - 5
    model, head = build()
    make = partial(torch.optim.SGD, lr=LR, weight_decay=DECAY)
    terms = {"ar": ActivationRegularization(ALPHA), "tar": TemporalActivationRegularization(BETA)}
    task = Task(model, head, make, seed=SEED, regularizers=terms)
    averaging = NTASGD(INTERVAL)
    logger = Collected(tmp_path)
    trainer = make_trainer(
        logger=logger,
        max_epochs=epochs,
        val_check_interval=VALIDATE_EVERY,
        check_val_every_n_epoch=None,
        gradient_clip_val=CLIP,
        log_every_n_steps=1,
        callbacks=[WeightAveraging(averaging)],
    )
    trainer.fit(task, windows(), windows(train=False))
    for key, expected in (("train/nll", trained), ("val/nll", validated)):
        assert logger.of(key) == pytest.approx(expected, abs=2e-3)
    assert averaging.begun
    assert averaging.mean.count == len(trained) - VALIDATE_EVERY * (begun + 1)
    assert validated[-1] < validated[0]
