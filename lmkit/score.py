"""`lmkit score`: a text token by token, as a model predicts it."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from lmkit.atomic import write_atomically
from lmkit.checkpoint_io import read_manifest
from lmkit.errors import UserError
from lmkit.lanes import Protocol
from lmkit.metrics import perplexity
from lmkit.run import Run, no_checkpoint, strict_json
from lmkit.score_page import page, said
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

    It is computed in full precision unless trainer.precision= says otherwise.
    A line of JSON a token: its nll in nats, the same in bits, the entropy of the prediction in
    nats, the token's rank in it (1 is the likeliest), and the likeliest tokens. The page goes
    into the run directory; its name has text, protocol, checkpoint and precision, so that no page
    takes another's place.
    text, file: one of them, read as one document.
    protocol: the run's own unless given; under sentence every line is read by itself.
    checkpoint: best, last or another of the run's.
    config: that of the run, of which kernels, threads, trainer.accelerator and trainer.precision
    are used
    """
    given = read_text(text, file)
    trained = TrainedModel.load(run, config, checkpoint)
    protocol = protocol or trained.protocol
    encoded = Text.of(given, trained.tokenizer, by_line=protocol == "sentence")
    how = {
        "protocol": protocol,
        "checkpoint": trained.checkpoint.stem if trained.checkpoint else None,
        "step": read_manifest(trained.checkpoint).get("step") if trained.checkpoint else None,
        "precision": trained.precision,
    }
    text_hash = hashlib.sha256(given.encode()).hexdigest()[:12]
    step = [] if how["step"] is None else [f"step-{how['step']}"]
    parts = (text_hash, protocol, how["checkpoint"], *step, how["precision"])
    path = run.path / "scores" / f"{'-'.join(map(str, parts))}.html"
    run.check_links()
    _make_directory(path.parent)
    scores = []
    for token in trained.scores(encoded, protocol):
        print(strict_json(token._asdict()))
        scores.append(token)
    nll = sum(token.nll for token in scores) / len(scores)
    summary = {
        "run": f"{run.name}/{run.id}",
        **how,
        "num_tokens": encoded.num_tokens,
        "num_unknown": encoded.num_unknown,
        "nll": nll,
        "bits": nll / math.log(2),
        "perplexity": perplexity(nll),
    }
    write_atomically(path, page(scores[:MAX_ON_PAGE], summary).encode())
    log.info(
        "%s tokens (%s unknown), %.4f nats a token, perplexity %.2f (%s); "
        "coloured by surprise in %s",
        *(f"{encoded.num_tokens:,}", f"{encoded.num_unknown:,}", nll, perplexity(nll)),
        *(said(summary), path),
    )
    return {**summary, "page": str(path), "tokens": [token._asdict() for token in scores]}


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write the page into {path}: {error.strerror}; make the run directory writable"
        ) from None
