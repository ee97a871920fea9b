"""`lmkit score`: its lines, its document, and its page in a real browser."""

import json
import re
import sys
from pathlib import Path

import pytest
from trained_run import load, make_run, real_stdout

from lmkit.cli import main
from lmkit.commands import score as score_module
from lmkit.commands.score import score
from lmkit.errors import UserError
from lmkit.inference import TokenScore
from lmkit.pages.score import EDGES, page

pytest_plugins = ["browser"]

TEXT = "the cat sat on the mat .\n\n a zebra ran , 'quoted' [and] {so} on\n"
HOSTILE = (
    "the </span><img src=x onerror=alert(1)> </script><script>alert(2)</script> "
    '<!-- &lt; &amp; "$title" \u202etac\u202c \x00\x1b[31m ${x}'
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def lstm(outputs):
    return make_run(outputs)


@pytest.fixture
def opened(browser):
    """Opens a file in a page that must make no request, log nothing and open no dialog."""
    context = browser.new_context(viewport={"width": 900, "height": 700})
    requests, messages = [], []

    def open_page(path, **media):
        view = context.new_page()
        view.emulate_media(**media)
        view.on("request", lambda request: requests.append(request.url))
        view.on("console", lambda message: messages.append(message.text))
        view.on("pageerror", lambda error: messages.append(str(error)))
        view.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
        view.goto(path.as_uri())
        return view

    yield open_page
    pages = {view.url for view in context.pages}
    context.close()
    assert messages == []
    assert set(requests) == pages


def test_a_line_of_json_for_each_token(lstm, capfd, caplog):
    caplog.set_level("INFO")
    assert main(["score", str(lstm.path), f"text={TEXT}"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    expected = load(lstm).score(TEXT)
    assert [list(line) for line in lines] == [list(TokenScore._fields)] * len(expected)
    assert lines == [json.loads(json.dumps(token._asdict())) for token in expected]
    nll = load(lstm).nll(TEXT)
    (path,) = (lstm.path / "scores").iterdir()
    assert caplog.messages[-1] == (
        f"{len(lines)} tokens (5 unknown), {nll:.4f} nats a token, perplexity "
        f"{load(lstm).perplexity(TEXT):.2f} (checkpoint best of step 7, protocol document, "
        f"precision 32-true); coloured by surprise in {path}"
    )


def test_a_table_on_a_terminal(lstm, capsys, monkeypatch):
    expected = load(lstm).score(TEXT)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    score(lstm, lstm.config(), text=TEXT)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["token", "nll", "bits", "entropy", "rank", "likeliest"]
    assert len(rows) == len(expected)
    for row, token in zip(rows, expected, strict=True):
        assert row[:16].strip() == token.piece.replace("\n", "\\n").strip()
        numbers = f"{token.nll:.3f} {token.bits:.3f} {token.entropy:.3f} {token.rank:,}".split()
        assert row[16:].split()[:4] == numbers
        assert row.split()[-1] == f"{token.top[2][1]:.2f}"


@pytest.mark.parametrize(
    ("token", "piece", "shown"),
    [(5, "", "<eos> "), (6, "", "<6> "), (6, "a\x1b[1m\n", "a\\x1b[1m\\n "), (6, " a", " a  ")],
)
def test_a_row_of_the_table_names_any_token(token, piece, shown):
    row = score_module._row(TokenScore(token, piece, 1.0, 1.5, 2.0, 3, ((piece, 0.5),)), eos_id=5)
    assert row.startswith(shown)
    assert row.isprintable()


def test_one_json_document(lstm, tmp_path, capfd):
    file = tmp_path / "a, b.txt"
    file.write_text(TEXT)
    with real_stdout():
        assert main(["score", str(lstm.path), f"file={file}", "format=json"]) == 0
    result = json.loads(capfd.readouterr().out)
    trained = load(lstm)
    assert len(result["tokens"]) == result["num_tokens"] == len(trained.score(TEXT))
    assert result["nll"] == pytest.approx(trained.nll(TEXT), abs=1e-6)
    assert result["perplexity"] == pytest.approx(trained.perplexity(TEXT), rel=1e-6)
    assert result["num_unknown"] == 5


def test_each_page_is_a_file_of_its_own_and_says_how_it_came_about(tmp_path):
    run = make_run(tmp_path)
    texts = ("the cat", "the dog")
    rounded = {**run.config(), "trainer": {**run.config()["trainer"], "precision": "bf16-mixed"}}
    ways = [
        (run.config(), text, protocol, checkpoint)
        for text in texts
        for protocol in ("document", "sentence", None)
        for checkpoint in ("best", "last", "step-000000007")
    ]
    ways.append((rounded, "the cat", "stream", "best"))
    pages = {}
    for config, text, protocol, checkpoint in ways:
        result = score(run, config, text=text, protocol=protocol, checkpoint=checkpoint)
        assert result["step"] == 7
        parts = (protocol or "document", checkpoint, "step-7", config["trainer"]["precision"])
        path = Path(result["page"])
        assert path.name.removesuffix(".html").split("-", 1)[1] == "-".join(parts)
        said = f"checkpoint {checkpoint} of step 7, protocol {parts[0]}, precision {parts[3]}"
        assert said in path.read_text()
        assert pages.setdefault(path, path.read_bytes()) == path.read_bytes()  # the same again
    assert {path: path.read_bytes() for path in (run.path / "scores").iterdir()} == pages
    assert len(pages) == 2 * 2 * 3 + 1


def test_an_unknown_word_keeps_its_own_text_beside_its_mark(lstm, opened):
    result = score(lstm, lstm.config(), text=TEXT)
    unknown = [token["piece"] for token in result["tokens"] if token["unknown"]]
    assert unknown == [" zebra", " ,", " 'quoted'", " [and]", " {so}"]
    assert [t.piece for t in load(lstm).score("a zebra ran\n") if t.unknown] == [" zebra"]
    view = opened(Path(result["page"]))
    marked = view.locator("#text > span.unknown")
    assert marked.all_text_contents() == unknown
    mark = marked.first.evaluate("s => getComputedStyle(s, '::after').content")
    assert mark == '"\N{WORD JOINER}<unk>"'
    marked.first.hover()
    assert view.locator("#panel td").first.text_content() == " zebra <unk>"
    told = "What is marked <unk> is not in the vocabulary."
    assert view.locator("p").nth(2).inner_text().endswith(told)
    known = opened(Path(score(lstm, lstm.config(), text="the cat")["page"]))
    assert known.get_by_text("<unk>").count() == known.locator(".unknown").count() == 0
    view.locator("#text > span").nth(1).hover()
    assert view.locator("#panel td").first.text_content() == " cat"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to read: give text=... or file=..."),
        ({"text": "a", "file": "b"}, "text and file are both given: leave one of them out"),
        ({"text": " \n"}, "the text is empty: give one that has words"),
    ],
)
def test_what_cannot_be_scored(lstm, arguments, message):
    with pytest.raises(UserError) as error:
        score(lstm, lstm.config(), **arguments)
    assert str(error.value) == message


def test_a_run_directory_that_cannot_be_written(tmp_path, capfd):
    run = make_run(tmp_path)
    (run.path / "scores").write_text("a file in its place")
    with pytest.raises(UserError) as error:
        score(run, run.config(), text="the cat")
    assert str(error.value) == (
        f"cannot write the page into {run.path}/scores: File exists; make the run directory "
        "writable"
    )
    assert capfd.readouterr().out == ""


def test_the_page_colours_by_bits_and_tells_the_numbers(lstm, opened, tmp_path):
    result = score(lstm, lstm.config(), text=TEXT)
    view = opened(lstm.path / "scores" / result["page"])
    spans = view.locator("#text > span")
    tokens = result["tokens"]
    assert spans.count() == len(tokens)
    assert view.locator("#text").text_content().replace("↵\n", "\n") == "".join(
        token["piece"] for token in tokens
    )
    levels = spans.evaluate_all("all => all.map(s => s.className)")
    assert levels == [
        " ".join([f"s{level}"] * (level > 0) + ["unknown"] * token["unknown"])
        for token in tokens
        for level in [sum(token["bits"] >= edge for edge in EDGES)]
    ]
    assert not view.locator("#panel").is_visible()
    spans.nth(1).hover()
    told = view.locator("#panel tr").all_inner_texts()
    token = tokens[1]
    numbers = [f"{token['bits']:.2f} bits, {token['nll']:.3f} nats", f"{token['entropy']:.3f} nats"]
    assert [row.split("\t")[-1] for row in told[1:4]] == [*numbers, str(token["rank"])]
    names = [name.replace("\n", "↵\n") for name, _ in token["top"]]
    assert [row.strip().split("\t")[0] for row in told[5:]] == names
    view.keyboard.press("ArrowRight")
    assert view.locator("#panel tr").first.inner_text().strip() == tokens[2]["piece"].strip()
    assert spans.nth(2).evaluate("s => s.className").endswith("at")
    view.keyboard.press("Escape")
    assert not view.locator("#panel").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_can_be_read_and_told_apart_by_its_lightness(lstm, opened, scheme):
    """So that the scale does not rest on hue, which not everyone sees."""
    result = score(lstm, lstm.config(), text=TEXT)
    view = opened(lstm.path / "scores" / result["page"], color_scheme=scheme)
    colours = view.locator("#legend > span").evaluate_all(
        """all => all.map(s => [getComputedStyle(s).color, getComputedStyle(s).backgroundColor])"""
    )
    ground = view.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = view.evaluate("getComputedStyle(document.getElementById('text')).color")
    colours[0] = [ink, ground]
    shades = [luminance(back) for _, back in colours]
    assert shades == sorted(shades, reverse=scheme == "light")
    assert len(set(shades)) == len(EDGES) + 1
    for fore, back in colours:
        light, dark = sorted((luminance(fore), luminance(back)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.2, AA


def luminance(colour):
    """WCAG's relative luminance of an rgb(...) colour."""
    channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_hostile_text_is_shown_as_text(outputs, opened):
    run = make_run(outputs, tokenizer="bytes")
    result = score(run, run.config(), text=HOSTILE)
    view = opened(run.path / "scores" / result["page"])
    shown = view.locator("#text").inner_text()
    assert shown == re.sub(
        "[\u202e\u202c\x00\x1b]", "\N{REPLACEMENT CHARACTER}", shown_bytes(HOSTILE)
    )
    assert view.locator("#text img, #text script").count() == 0
    view.locator("#text > span").nth(5).hover()
    assert view.locator("#panel").is_visible()


def shown_bytes(text):
    """The page's signs for bytes that are not yet a character, and for the document's end."""
    return "".join("·" * (len(c.encode()) - 1) + c for c in text) + "∎"


def test_hostile_predictions_and_names_are_shown_as_text(tmp_path, opened):
    evil = "<img src=x onerror=alert(1)></script>"
    token = TokenScore(0, evil, float("nan"), float("nan"), 0.0, 1, ((evil, 0.5),))
    summary = {"run": evil, "checkpoint": evil, "num_tokens": 3, "num_unknown": 0}
    summary |= {"step": None, "protocol": "document", "precision": "32-true"}
    file = tmp_path / "page.html"
    file.write_text(page([token], summary | {"nll": 1.0, "bits": 1.4, "perplexity": 2.7}))
    view = opened(file)
    assert view.locator("img").count() == 0
    assert view.title() == view.locator("h1").inner_text() == evil
    assert "; the first 1 tokens are shown" in view.locator("p").first.inner_text()
    view.locator("#text > span").first.hover()
    told = view.locator("#panel tr").all_inner_texts()
    assert told[0].strip() == evil
    assert told[1].split("\t")[1] == "not finite bits, not finite nats"
    assert told[-1].split("\t") == [f"  {evil}", "50.0 %"]


def test_a_page_holds_no_more_than_a_browser_can_show(lstm, opened, monkeypatch):
    monkeypatch.setattr(score_module, "MAX_ON_PAGE", 4)
    result = score(lstm, lstm.config(), text="a dog " * 5)
    assert len(result["tokens"]) == 11
    view = opened(lstm.path / "scores" / result["page"])
    assert view.locator("#text > span").count() == 4
    assert "11 tokens" in view.locator("p").first.inner_text()
    assert "; the first 4 tokens are shown" in view.locator("p").first.inner_text()
