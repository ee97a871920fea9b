"""The page of scored tokens: one self-contained HTML file with the text coloured by surprise."""

from __future__ import annotations

import html
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import pairwise
from string import Template
from typing import Any

from lmkit.inference import TokenScore
from lmkit.pages.policy import own_style_and_script
from lmkit.system.files import strict_json

# The bounds between colours, in bits.
EDGES = (1, 2, 3, 5, 7, 9, 12)
UNKNOWN = " What is marked &lt;unk&gt; is not in the vocabulary."
# Control characters, and those that change the direction of text.
UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def page(tokens: Sequence[TokenScore], summary: Mapping[str, Any]) -> str:
    """The page of a scored text, in which the text itself cannot act as HTML.

    tokens: all of the summary's `num_tokens`, or only the first of them.
    """
    template = (files("lmkit.pages") / "score.html").read_text(encoding="utf-8")
    last = summary["num_tokens"] - 1
    spans = [
        f"<span{_class(token)}>{html.escape(_shown(token.piece, index == last))}</span>"
        for index, token in enumerate(tokens)
    ]
    data = [
        [
            *(round(number, 4) for number in (token.nll, token.bits, token.entropy)),
            token.rank,
            [[_shown(surface, False), round(share, 4)] for surface, share in token.top],
        ]
        for token in tokens
    ]
    line = (
        f"{said(summary)}: {summary['num_tokens']:,} tokens, "
        f"{summary['num_unknown']:,} unknown, {summary['bits']:.2f} bits "
        f"({summary['nll']:.4f} nats) a token, perplexity {summary['perplexity']:,.2f}"
    )
    if len(tokens) <= last:
        line += f"; the first {len(tokens):,} tokens are shown"
    return Template(template).substitute(
        policy=own_style_and_script(template),
        title=html.escape(summary["run"]),
        summary=html.escape(line),
        legend=_legend(),
        unknown=UNKNOWN if summary["num_unknown"] else "",
        text="".join(spans),
        # Inside <script> only "<" could end the data.
        data=strict_json(data).replace("<", "\\u003c"),
    )


def _shown(surface: str, is_last: bool) -> str:
    """A token's surface, with a sign where nothing would be visible."""
    if not surface:  # the end of the document, or bytes that are not yet a character
        return "∎" if is_last else "·"
    return UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", surface).replace("\n", "↵\n")


def said(summary: Mapping[str, Any]) -> str:
    """How a text was scored, in a few words."""
    step = "" if summary["step"] is None else f" of step {summary['step']:,}"
    return (
        f"checkpoint {summary['checkpoint']}{step}, protocol {summary['protocol']}, "
        f"precision {summary['precision']}"
    )


def _class(token: TokenScore) -> str:
    level = bisect_right(EDGES, token.bits)
    names = [*([f"s{level}"] if level else []), *(["unknown"] if token.unknown else [])]
    return f' class="{" ".join(names)}"' if names else ""


def _legend() -> str:
    names = [
        f"0 to {EDGES[0]}",
        *(f"{low} to {high}" for low, high in pairwise(EDGES)),
        f"{EDGES[-1]} and more",
    ]
    return "".join(f'<span class="s{level}">{name}</span>' for level, name in enumerate(names))
