"""`lmkit score`: a text token by token, as a model predicts it."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from lmkit.atomic import write_atomically
from lmkit.errors import UserError
from lmkit.lanes import Protocol
from lmkit.metrics import perplexity
from lmkit.run import Run, no_checkpoint, strict_json
from lmkit.score_page import page
from lmkit.text import Text, read_text
from lmkit.trained import TrainedModel

log = logging.getLogger(__name__)

# A browser is slow with more elements than this.
MAX_ON_PAGE = 20_000


def score(
    run: Annotated[Run, no_checkpoint],
    config: Mapping[str, Any],
    *,
    text: str | None = None,
    file: str | None = None,
    protocol: Protocol | None = None,
    checkpoint: str = "best",
) -> dict[str, Any]:
    """Print what each token of a text costs, and write a page that colours it by surprise.

        lmkit score latest text="The cat sat on the mat."
        lmkit score latest file=text.txt protocol=sentence

    A line of JSON a token: its nll in nats, the same in bits, the entropy of the prediction in
    nats, the token's rank in it (1 is the likeliest), and the likeliest tokens. The page goes
    into the run directory.
    text, file: one of them, read as one document.
    protocol: the run's own unless given; under sentence every line is read by itself.
    checkpoint: best, last or another of the run's.
    config: that of the run, of which kernels, threads, trainer.accelerator and trainer.precision
    are used
    """
    given = read_text(text, file)
    trained = TrainedModel.load(run, config, checkpoint)
    encoded = Text.of(given, trained.tokenizer)
    name = hashlib.sha256(given.encode()).hexdigest()[:12]
    path = run.path / "scores" / f"{name}.html"
    run.check_links()
    _make_directory(path.parent)
    scores = []
    for token in trained.scores(encoded, protocol):
        print(strict_json(token._asdict()))
        scores.append(token)
    nll = sum(token.nll for token in scores) / len(scores)
    summary = {
        "run": f"{run.name}/{run.id}",
        "checkpoint": trained.checkpoint.stem if trained.checkpoint else None,
        "num_tokens": encoded.num_tokens,
        "num_unknown": encoded.num_unknown,
        "nll": nll,
        "bits": nll / math.log(2),
        "perplexity": perplexity(nll),
    }
    write_atomically(path, page(scores[:MAX_ON_PAGE], summary).encode())
    log.info(
        "%s tokens (%s unknown), %.4f nats a token, perplexity %.2f; coloured by surprise in %s",
        *(f"{encoded.num_tokens:,}", f"{encoded.num_unknown:,}", nll, perplexity(nll), path),
    )
    return {**summary, "page": str(path), "tokens": [token._asdict() for token in scores]}


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write the page into {path}: {error.strerror}; make the run directory writable"
        ) from None
