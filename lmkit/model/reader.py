"""Reading a text with a model: windows in, hidden vectors out, the state carried between them."""

from __future__ import annotations

from torch import Tensor

from lmkit.model.base import LanguageModel, Output
from lmkit.model.state import States, detached


class Reader:
    """A model that reads a text window by window, with the state that it carries between them.

    The state is detached after each window (truncated BPTT); where it is None, the next window
    begins from the zero state.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.state: States | None = None

    def read(self, tokens: Tensor, resets: Tensor) -> Output:
        """tokens int64 and resets bool, both (lanes, time); the state of the output is detached.

        There may be fewer lanes than before: those that have ended are always the last ones.
        """
        output: Output = self.model(tokens, resets, self.before(tokens))
        self.state = detached(output.state)
        return output._replace(state=self.state)

    def before(self, tokens: Tensor) -> States:
        """The state that tokens (lanes, time) are read from, on their device: one that was loaded
        is on another."""
        lanes = len(tokens)
        state = self.model.initial_state(lanes) if self.state is None else self.state
        return tuple(tuple(part[:lanes].to(tokens.device) for part in layer) for layer in state)

    def repeat(self, times: int) -> None:
        """Copy the state of the one lane into so many lanes, which all continue from it."""
        assert self.state is not None
        self.state = tuple(
            tuple(tensor.repeat_interleave(times, 0) for tensor in layer) for layer in self.state
        )
