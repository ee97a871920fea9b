"""`lmkit score`: a text token by token, as a model predicts it."""

from __future__ import annotations

import hashlib
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from lmkit.commands.score_table import check_unused, score_table
from lmkit.errors import UserError
from lmkit.inference import Text, TokenScore, TrainedModel
from lmkit.inference.table import FirstWord, Joint, Layout
from lmkit.inference.text import read_text
from lmkit.metrics import perplexity
from lmkit.pages.score import page, said
from lmkit.run import Run, no_checkpoint
from lmkit.run.checkpoints import read_manifest
from lmkit.system.files import strict_json, write_atomically
from lmkit.windows.lanes import Protocol

log = logging.getLogger(__name__)

# A browser is slow with more elements than this.
MAX_ON_PAGE = 20_000
NUM_TOP = 3  # likeliest tokens in a row of the table
HEAD = f"{'token':<16} {'nll':>8} {'bits':>8} {'entropy':>8} {'rank':>7}  likeliest"


def score(
    run: Annotated[Run, no_checkpoint],
    config: Mapping[str, Any],
    *,
    text: str | None = None,
    file: str | None = None,
    protocol: Protocol | None = None,
    checkpoint: str = "best",
    table: str | None = None,
    text_column: str = "sentence",
    context_column: str | None = None,
    out: str | None = None,
    spillover: int = 0,
    first_word: FirstWord = "scored",
    joined_by: Joint = "space",
    prefix: str = "",
) -> dict[str, Any]:
    """Print what each token of a text costs; or write a table of words and what they cost.

        lmkit score latest text="The cat sat on the mat."
        lmkit score latest file=text.txt protocol=sentence
        lmkit score latest table=stimuli.csv text_column=sentence out=words.csv

    It is computed in full precision unless trainer.precision= says otherwise.
    For each token its nll in nats, the same in bits, the entropy of the prediction in nats, the
    token's rank in it (1 is the likeliest), and the likeliest tokens: as a table on a terminal, as
    a line of JSON elsewhere. The closing <eos> has no text: its piece is empty. A page in the run
    directory colours the text by surprise; its name has text, protocol, checkpoint and precision,
    so that no page takes another's place.
    text, file: one of them, read as one document.
    protocol: the run's own unless given; under sentence every line is read by itself.
    checkpoint: best, last or another of the run's.
    table: CSV, TSV, parquet or JSON lines with a text in each row; see docs/surprisal.md.
    text_column: the column of the texts.
    context_column: rows that follow each other with the same value there are one text.
    out: the new table, in any of the formats; unless given, NAME-words beside the table NAME.
    spillover: for so many words before, columns with their surprisal and length too.
    first_word: missing: no measures of a text's first word.
    joined_by: what stands between the rows of one text, a space or a newline.
    prefix: what the names of the new columns begin with.
    config: that of the run, of which kernels, threads, trainer.accelerator and trainer.precision
    are used
    """
    settings = (text_column, context_column, spillover, first_word, joined_by, prefix)
    if table is not None:
        if text is not None or file is not None:
            raise UserError(
                f"table and {'text' if file is None else 'file'} are both given: leave one out"
            )
        return score_table(run, config, checkpoint, Layout(*settings, protocol), table, out)
    check_unused(Layout(*settings), out)
    content = read_text(text, file)
    trained = TrainedModel.load(run, config, checkpoint)
    protocol = protocol or trained.protocol
    encoded = Text.of(content, trained.tokenizer, by_line=protocol == "sentence")
    how = {
        "protocol": protocol,
        "checkpoint": trained.checkpoint.stem if trained.checkpoint else None,
        "step": read_manifest(trained.checkpoint).get("step") if trained.checkpoint else None,
        "precision": trained.precision,
    }
    text_hash = hashlib.sha256(content.encode()).hexdigest()[:12]
    step = [] if how["step"] is None else [f"step-{how['step']}"]
    words = (text_hash, protocol, how["checkpoint"], *step, how["precision"])
    path = run.path / "scores" / f"{'-'.join(map(str, words))}.html"
    run.check_links()
    _make_directory(path.parent)
    scores = []
    as_table = sys.stdout.isatty()
    if as_table:
        print(HEAD)
    for token in trained.scores(encoded, protocol):
        print(_row(token, trained.tokenizer.eos_id) if as_table else strict_json(token._asdict()))
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


def _row(token: TokenScore, eos_id: int) -> str:
    """A line of the table, safe for any characters in a token."""
    nameless = "<eos>" if token.token == eos_id else f"<{token.token}>"
    surface = _printable(token.piece) or nameless
    top = "  ".join(f"{_printable(name)} {share:.2f}" for name, share in token.top[:NUM_TOP])
    numbers = f"{token.nll:8.3f} {token.bits:8.3f} {token.entropy:8.3f} {token.rank:7,}"
    return f"{surface:<16} {numbers}  {top}"


def _printable(text: str) -> str:
    """A token's surface on one line: spaces stay, characters that move the cursor are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write the page into {path}: {error.strerror}; make the run directory writable"
        ) from None
