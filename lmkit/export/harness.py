"""A trained model as a model of lm-evaluation-harness, registered there as `lmkit`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from lmkit.inference import Text, TrainedModel
from lmkit.inference.tokens import read_tokens
from lmkit.run import Run, no_checkpoint

MOST_GENERATED = 256  # tokens, where a task does not say it


@register_model("lmkit")
class LmkitLM(TemplateLM):
    """Each request is a text of its own, after `<eos>` from the zero state, read as a whole.

    trained: the model; without it that of a run. run, outputs, checkpoint: as on lmkit's command
    line, and in `--model_args run=latest`.
    """

    def __init__(
        self,
        trained: TrainedModel | None = None,
        *,
        run: str = "latest",
        outputs: str = "outputs",
        checkpoint: str = "best",
        **_: Any,
    ) -> None:
        """Whatever else the harness gives, batch sizes and a device, is lmkit's own choice."""
        super().__init__()
        if trained is None:
            found = Run.find(outputs, run, no_checkpoint)
            config = found.config()
            trainer = {**config["trainer"], "precision": "32-true"}
            trained = TrainedModel.load(found, {**config, "trainer": trainer}, checkpoint)
        self.trained = trained

    @property
    def eot_token_id(self) -> int:
        return self.trained.tokenizer.eos_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        return self.trained.tokenizer.encode_text(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """The log-probability of each continuation in nats, and whether each of its tokens is the
        likeliest."""
        begin = [self.eot_token_id]
        pairs = [
            (context[1:] if context[:1] == begin else context, continuation)
            for _, context, continuation in requests
        ]
        answers = iter(self._read([context + more for context, more in pairs if context + more]))
        results = []
        for context, continuation in pairs:
            bits, rank = next(answers) if context + continuation else (np.zeros(0), np.zeros(0))
            log_prob = -math.fsum(bits[len(context) :]) * math.log(2)
            results.append((log_prob, bool((rank[len(context) :] == 1).all())))
        return results

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-probability of each text in nats, without its end; none is cut."""
        nothing: list[int] = []
        texts = [("", nothing, self.tok_encode(request.args[0])) for request in requests]
        return [log_prob for log_prob, _ in self._loglikelihood_tokens(texts)]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What follows each prompt, up to the first of the texts that end it."""
        return [self._generated(*request.args) for request in requests]

    def _generated(self, prompt: str, how: dict[str, Any]) -> str:
        sampled = how.get("do_sample", False)
        (text,) = self.trained.generate(
            prompt,
            num_tokens=how.get("max_gen_toks", MOST_GENERATED),
            temperature=how.get("temperature", 1.0) if sampled else 0.0,
        )
        text = text[len(prompt) :]
        ends = how.get("until") or []
        for end in [ends] if isinstance(ends, str) else ends:
            text = text.partition(end)[0] if end else text
        return text

    def _read(self, texts: Sequence[list[int]]) -> list[tuple[Any, Any]]:
        """The bits and the rank of each token of some texts."""
        if not texts:
            return []
        ends = np.cumsum([len(ids) for ids in texts])
        ids = np.concatenate([np.array(ids, np.uint32) for ids in texts])
        read = read_tokens(self.trained, Text(ids, ends, ends, 0, 0), "document", None)
        cuts = ends[:-1]
        return list(zip(np.split(read.bits, cuts), np.split(read.rank, cuts), strict=True))
