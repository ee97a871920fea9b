"""Chooses the number of threads by timing work, since other programs may use the same cores."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch

from lmkit.system.wording import counted

BLOCK = 0.4  # seconds with one number of threads in a trial
LOOK = 5.0  # seconds over which the speed is measured afterwards
AGAIN = 120.0  # seconds until another trial if fewer threads than possible were chosen
QUIET = 60.0  # seconds at least between two trials or two messages about the speed
FALLEN = 0.6  # share of the expected speed below which there is another trial
GAIN = 1.05  # times as fast must another number be, to be chosen


@contextmanager
def use(number: int | None) -> Iterator[None]:
    """Within this context PyTorch and the compiled kernels use so many threads; None changes
    nothing."""
    before = torch.get_num_threads()
    if number is not None and number != before:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def trial(most: int, current: int | None = None) -> Generator[int, float, int]:
    """Yields numbers of threads to try, is sent the speed with each, and returns the best.

    `most` is halved as long as that does not cost a fifth of the speed; the best two are tried
    twice. The current number, or without one the higher of the two, stays unless the other is
    clearly faster.
    """
    rates: dict[int, float] = {}
    number = most
    while True:
        rates[number] = yield number
        if number == 1 or rates[number] < 0.8 * max(rates.values()):
            break
        number //= 2
    two = sorted(rates, key=lambda number: -rates[number])[:2]
    if len(two) > 1:
        for number in two:
            rates[number] = (rates[number] + (yield number)) / 2
    best = max(two, key=lambda number: rates[number])
    kept = current if current in two else max(two)
    return best if rates[best] > GAIN * rates[kept] else kept


class Threads:
    """Chooses the number of threads of this process by timing its actual work.

    most: the largest number. number: the number to begin with; without it a trial comes first. With
    `fixed` the number does not change, and only the speed is watched.
    """

    def __init__(
        self, most: int, number: int | None = None, rate: float = 0.0, *, fixed: bool = False
    ) -> None:
        self.most = most
        self.number = number or most
        self.fixed = fixed
        self.rates: dict[int, float] = {self.number: rate}  # tokens per second in the last trial
        self._rate = rate  # the expected speed
        self._before: int | None = None  # the number before the present trial
        self._trial: Generator[int, float, int] | None = None
        self._tokens = 0
        self._seconds = 0.0
        self._since = QUIET  # seconds since the last trial or message
        if number is None and not fixed and most > 1:
            self._try(None)
        torch.set_num_threads(self.number)

    @property
    def settled(self) -> bool:
        """Whether no trial is running."""
        return self._trial is None

    def worked(self, tokens: int, seconds: float) -> str | None:
        """Note work done with `number` threads, which may change then; returns a message if the
        speed fell or the number changed."""
        self._tokens += tokens
        self._seconds += seconds
        if self._seconds < (LOOK if self.settled else BLOCK):
            return None
        rate, self._tokens, seconds = self._tokens / self._seconds, 0, self._seconds
        self._seconds = 0.0
        if self._trial is not None:
            return self._tried(rate)
        self._since += seconds
        before, self._rate = self._rate, max(self._rate, rate)
        fallen = rate < FALLEN * before and self._since > QUIET
        doubtful = self.number < self.most and self._since > AGAIN
        if not fallen and not (doubtful and not self.fixed):
            return None
        self._since = 0.0
        self._rate = rate
        if not self.fixed and self.most > 1:
            self._try(self.number)
            torch.set_num_threads(self.number)
        return self._fell(before, rate) if fallen else None

    def _try(self, current: int | None) -> None:
        self._before = current
        self._trial = trial(self.most, current)
        self.number = next(self._trial)
        self.rates = {}

    def _tried(self, rate: float) -> str | None:
        assert self._trial is not None
        self.rates[self.number] = rate
        try:
            self.number = self._trial.send(rate)
        except StopIteration as best:
            self.number, self._trial = best.value, None
            self._rate = self.rates[self.number]
        torch.set_num_threads(self.number)
        if not self.settled or self.number == (self._before or self.most):
            return None
        before = self._before or self.most
        return f"going on with {counted(self.number, 'thread')} instead of {before}: {self}"

    def _fell(self, before: float, rate: float) -> str:
        kept = f"; it stays at {counted(self.number, 'thread')}" if self.fixed else ""
        return (
            f"the speed fell from {before:,.0f} to {rate:,.0f} tokens/s: "
            f"other programs use these cores{kept}"
        )

    def __str__(self) -> str:
        """The measured speeds, as `5,900 tokens/s with 2 threads (3,700 with 1)`."""
        others = [n for n in sorted(self.rates, reverse=True) if n != self.number]
        speeds = ", ".join(f"{self.rates[n]:,.0f} with {n}" for n in others)
        chosen = f"{self.rates[self.number]:,.0f} tokens/s with {counted(self.number, 'thread')}"
        return f"{chosen} ({speeds})" if others else chosen
