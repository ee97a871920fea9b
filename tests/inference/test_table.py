"""`TrainedModel.table`: equality with slow twins, invariances, conventions, kinds, mistakes."""

import itertools
import math

import pyarrow as pa
import pytest
from all_tokenizers import WITH_SPACES, Letters, all_tokenizers, random_model, tiny_model
from trained_run import SlowTwin

from lmkit.errors import UserError
from lmkit.inference import tokens as tokens_module
from lmkit.inference.table import Layout
from lmkit.tokenizer.pattern import Pattern

NAMES = sorted(all_tokenizers())
SENTENCES = [
    *("the cat sat on the mat .", "The dogs ran", "naïve zebra , don't stop!", "a", "the end"),
    *("on  the mat", "über the cat", "cat", "the dogs sat and ran and ran", "stop"),
]
ITEMS = [{"id": i, "story": i // 4, "sentence": text} for i, text in enumerate(SENTENCES)]
BITS = ("surprisal", "surprisal_corrected", "entropy", "entropy_reduction")


def close(found, expected, tolerance=1e-5):
    """Whether two tables are the same, up to rounding."""
    assert [list(row) for row in found] == [list(row) for row in expected]
    for one, other in zip(found, expected, strict=True):
        for key, value in one.items():
            if isinstance(value, float):
                assert value == pytest.approx(other[key], abs=tolerance), (key, one, other)
            else:
                assert value == other[key], (key, one, other)


@pytest.mark.parametrize("name", NAMES)
def test_one_by_one_is_all_at_once(name, monkeypatch):
    trained = tiny_model(name)
    settings = {"spillover": 2}
    together = trained.table(ITEMS, **settings)
    assert len(together) == sum(len(text.split()) for text in SENTENCES)
    close(together, [row for item in ITEMS for row in trained.table([item], **settings)])
    monkeypatch.setattr(tokens_module, "NUM_LANES", 3)
    close(together, trained.table(ITEMS, **settings))
    monkeypatch.setattr(tokens_module, "POSITIONS", 13)  # several windows of 4 positions
    close(together, trained.table(ITEMS, **settings))
    backwards = trained.table(ITEMS[::-1], **settings)
    close(together, sorted(backwards, key=lambda row: (row["id"], row["position"])))


@pytest.mark.parametrize("name", NAMES)
def test_the_columns(name):
    rows = tiny_model(name).table(ITEMS)
    corrected = ["surprisal_corrected"] if name in WITH_SPACES else []
    names = ["id", "story", "sentence", "word", "position", "length", "surprisal", *corrected]
    names += ["entropy", "entropy_reduction", "rank", "unknown", "num_tokens"]
    assert all(list(row) == names for row in rows)
    expected = [
        (item["id"], item["sentence"], word, position, len(word))
        for item in ITEMS
        for position, word in enumerate(item["sentence"].split(), 1)
    ]
    keys = ("id", "sentence", "word", "position", "length")
    assert [tuple(row[key] for key in keys) for row in rows] == expected


def test_words_are_predicted_as_by_stock_modules():
    trained = tiny_model("word")
    twin, tokenizer = SlowTwin(trained), trained.tokenizer
    rows = iter(trained.table(ITEMS))
    for item in ITEMS:
        ids = tokenizer.encode_text(item["sentence"])
        log_prob = twin.log_prob([tokenizer.eos_id, *ids[:-1]])
        before = None
        for token, row_of in zip(ids, log_prob, strict=True):
            row = next(rows)
            assert row["surprisal"] == pytest.approx(-row_of[token].item() / math.log(2), abs=1e-5)
            entropy = -(row_of.exp() * row_of).sum().item() / math.log(2)
            assert row["entropy"] == pytest.approx(entropy, abs=1e-5)
            reduction = 0 if before is None else max(0, before - entropy)
            assert row["entropy_reduction"] == pytest.approx(reduction, abs=1e-5)
            assert row["rank"] == 1 + int((row_of > row_of[token]).sum())
            assert row["unknown"] == (token == tokenizer.unk_id)
            assert row["num_tokens"] == 1
            before = entropy


class Brute:
    """The probability that a text goes on with a word and then ends or has a space, by summing
    over what may come."""

    def __init__(self, trained):
        self.twin = SlowTwin(trained)

    def step(self, tokens):
        return self.twin.log_prob([4, *tokens])[-1].exp().tolist()

    def probability(self, tokens):
        """Of these tokens, at the start of a text."""
        return math.prod(self.step(tokens[:i])[token] for i, token in enumerate(tokens))

    def whole(self, tokens):
        """Of these tokens, and that a space or the end follows."""
        return self.probability(tokens) * sum(self.step(tokens)[2:])


def letters(text):
    """The tokens of a text of a and b."""
    return [
        2 + "ab".index(c) if i and text[i - 1] == " " else "ab".index(c)
        for i, c in enumerate(text)
        if c != " "
    ]


@pytest.mark.parametrize("context", ["", "a", "b ab", "ba b a"])
def test_corrected_words_are_a_distribution(context):
    """p(word | words before) of whole words, which with the end and the longer ones sum to 1."""
    trained = random_model(Letters())
    brute = Brute(trained)
    words = ["".join(each) for n in (1, 2, 3) for each in itertools.product("ab", repeat=n)]
    start = f"{context} " if context else ""
    rows = trained.table([{"sentence": start + word} for word in words])
    last = [row for i, row in enumerate(rows) if i + 1 == len(rows) or rows[i + 1]["position"] == 1]
    before = letters(context)
    # Of all texts that begin with the context as whole words; a text begins without a space.
    given = brute.whole(before) if context else sum(brute.step([])[i] for i in (0, 1, 4))
    found = 0.0
    for word, row in zip(words, last, strict=True):
        assert row["word"] == word
        probability = 2 ** -row["surprisal_corrected"]
        assert probability == pytest.approx(brute.whole(letters(start + word)) / given, rel=1e-4)
        raw = brute.probability(letters(start + word)) / brute.probability(before)
        assert 2 ** -row["surprisal"] == pytest.approx(raw, rel=1e-4)
        found += probability
    ended = brute.probability([*before, 4]) / given
    longer = sum(
        brute.probability(letters(start + word)) * sum(brute.step(letters(start + word))[:2])
        for word in words
        if len(word) == 3
    )
    assert found + ended + longer / given == pytest.approx(1, abs=1e-5)
    uncorrected = sum(2 ** -row["surprisal"] for row in last)
    assert abs(uncorrected - found) > 1e-3


def test_a_first_word_after_a_space_is_compared_with_others_after_one():
    trained = random_model(Letters())
    ((row,),) = ([*trained.table([{"sentence": " a"}])],)
    brute = Brute(trained)
    given = sum(brute.step([])[2:])
    expected = brute.whole([2]) / given
    assert 2 ** -row["surprisal_corrected"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", sorted(WITH_SPACES))
def test_a_correction_needs_only_what_comes_up_to_the_word(name):
    """The end of a word is a space or the end of the text: what follows does not matter."""
    trained = tiny_model(name)
    words = ["the", "cat", "sat", "on", "the", "mat"]
    rows = trained.table([{"sentence": " ".join(words)}])
    moved = [row["surprisal_corrected"] - row["surprisal"] for row in rows]
    for n in range(1, len(words)):
        prefix = trained.table([{"sentence": " ".join(words[:n])}])
        own = [row["surprisal_corrected"] - row["surprisal"] for row in prefix]
        assert own == pytest.approx(moved[:n], abs=1e-5)
    assert all(row["surprisal_corrected"] > 0 for row in rows)
    assert max(map(abs, moved)) > 0.01


@pytest.mark.parametrize("joined_by", ["space", "newline"])
@pytest.mark.parametrize("name", NAMES)
def test_a_context_column_carries_the_state_over_its_rows(name, joined_by):
    trained = tiny_model(name)
    joint = {"space": " ", "newline": "\n"}[joined_by]
    settings = {"spillover": 1, "joined_by": joined_by}
    rows = trained.table(ITEMS, context_column="story", **settings)
    whole = [
        {"sentence": joint.join(item["sentence"] for item in ITEMS if item["story"] == story)}
        for story in (0, 1, 2)
    ]
    expected = trained.table(whole, **settings)
    items = ("id", "story", "sentence", "position")
    close(
        [{k: v for k, v in row.items() if k not in items} for row in rows],
        [{k: v for k, v in row.items() if k not in items} for row in expected],
    )
    alone = trained.table(ITEMS, **settings)
    assert [row["position"] for row in rows] == [row["position"] for row in alone]
    if name == "phrases":  # its tokens reach over the end of a row
        return
    for one, other in zip(rows, alone, strict=True):
        difference = abs(one["surprisal"] - other["surprisal"])
        if one["id"] % 4 == 0 or one["position"] == 1:
            assert (difference < 1e-5) == (one["id"] % 4 == 0)


def test_under_sentence_each_line_is_a_text():
    for name in ("word", "bpe", "characters", "byte_level"):
        trained = random_model(all_tokenizers()[name], protocol="sentence")
        lines = ["the cat sat", "dogs ran and"]
        apart = trained.table([{"sentence": line} for line in lines], spillover=1)
        together = trained.table([{"sentence": "\n".join(lines)}], spillover=1)
        for row in (*apart, *together):
            del row["sentence"], row["position"]
        corrected = [row.pop("surprisal_corrected", 0) for row in (*apart, *together)]
        assert corrected[0] == pytest.approx(corrected[6], abs=1e-5)
        for row in (*apart, *together):
            row.pop("surprisal_corrected_prev1", 0)
        close(together, apart)
        document = trained.table([{"sentence": "\n".join(lines)}], protocol="document")
        assert document[3]["surprisal"] != pytest.approx(apart[3]["surprisal"], abs=1e-3)
        with pytest.raises(UserError, match="protocol=sentence reads each line from the zero"):
            trained.table(ITEMS, context_column="story", joined_by="newline")


@pytest.mark.parametrize("name", ["word", "bpe"])
def test_the_first_word_may_be_without_measures(name):
    trained = tiny_model(name)
    scored = trained.table(ITEMS, context_column="story", spillover=1)
    missing = trained.table(ITEMS, context_column="story", spillover=1, first_word="missing")
    firsts = [row["id"] in (0, 4, 8) and row["position"] == 1 for row in scored]
    gone = {*BITS, "rank"} & scored[0].keys()
    for i, (one, other) in enumerate(zip(scored, missing, strict=True)):
        changed = {key for key in one if one[key] != other[key]}
        if firsts[i]:
            assert changed == gone
            assert {other[key] for key in gone} == {None}
        elif firsts[i - 1]:
            nothing = {"entropy_reduction", "surprisal_prev1", "surprisal_corrected_prev1"}
            assert changed == nothing & one.keys()
            assert {other[key] for key in changed} == {None}
        else:
            assert not changed


def test_spillover_is_of_the_words_before_in_the_same_text():
    rows = tiny_model("bpe").table(ITEMS, context_column="story", spillover=3)
    by_story = itertools.groupby(rows, key=lambda row: row["story"])
    for _, group in by_story:
        words = list(group)
        for i, row in enumerate(words):
            for back in (1, 2, 3):
                before = words[i - back] if i >= back else {}
                for key in ("surprisal", "surprisal_corrected", "length"):
                    assert row[f"{key}_prev{back}"] == before.get(key)


def test_a_word_without_a_token_has_no_measures():
    """U+200B is no whitespace, and this tokenizer leaves it out."""
    trained = tiny_model("wordpiece")
    rows = trained.table([{"sentence": "the \u200b cat"}])
    assert [row["num_tokens"] for row in rows] == [1, 0, 1]
    assert {rows[1][key] for key in ("surprisal", "entropy", "entropy_reduction", "rank")} == {None}
    assert rows[2]["entropy_reduction"] is None
    bare = trained.table([{"sentence": "the cat"}])
    assert rows[2]["surprisal"] == bare[1]["surprisal"]


def test_a_frame_comes_back_as_what_it_was():
    pandas = pytest.importorskip("pandas")
    trained = tiny_model("bpe")
    settings = {"context_column": "story", "spillover": 1, "prefix": "lm_"}
    expected = trained.table(ITEMS, **settings)
    assert list(expected[0])[:4] == ["id", "story", "sentence", "lm_word"]
    arrow = trained.table(pa.Table.from_pylist(ITEMS), **settings)
    assert isinstance(arrow, pa.Table)
    assert arrow.to_pylist() == expected
    frame = pandas.DataFrame(ITEMS, index=range(100, 110))
    frame["when"] = pandas.Timestamp("2020-01-02")
    before = frame.copy()
    found = trained.table(frame, **settings)
    assert list(found.columns) == [*frame.columns, *list(expected[0])[3:]]
    assert found.index.tolist() == list(range(len(expected)))
    assert found.dtypes["when"] == frame.dtypes["when"]
    assert pa.Table.from_pandas(found.drop(columns="when")).to_pylist() == expected
    pandas.testing.assert_frame_equal(frame, before)
    frame.loc[103, "sentence"] = None
    with pytest.raises(UserError, match="row 3: column 'sentence' is empty"):
        trained.table(frame)


def test_what_else_a_list_of_dicts_holds_does_not_matter():
    thing = object()
    rows = tiny_model("word").table([{"a": thing, "sentence": "the cat"}, {"sentence": "dogs"}])
    assert [row.get("a") for row in rows] == [thing, thing, None]
    assert "a" not in rows[2]


MISTAKES = [
    ([], {}, "the table has no rows: give one with an item in each"),
    (
        "x.csv",
        {},
        "a table is a pandas DataFrame, a pyarrow Table or a list of dicts, not str",
    ),
    (
        [{"sentense": "a", "id": 1}],
        {},
        "the table has no column 'sentence': did you mean sentense? it has sentense, id",
    ),
    (
        [{"sentence": "a", "b": 1}],
        {"context_column": "story"},
        "the table has no column 'story': it has sentence, b",
    ),
    (
        [{"sentence": "a"}, {"sentence": " \n"}, {"sentence": None}],
        {},
        "row 1: column 'sentence' is empty, and 1 more such cells; give each row a text, or leave "
        "it out",
    ),
    ([{"sentence": 3}], {}, "row 0, column 'sentence' is int, not a string"),
    (
        [{"sentence": "a", "word": 1, "rank": 2}],
        {},
        "the table has word, rank already, names of the words' columns: rename what it has, or set "
        "a prefix for the new columns, as prefix=lm_",
    ),
    (
        [{"sentence": "a", "s": 1}, {"sentence": "a", "s": None}],
        {"context_column": "s"},
        "row 1: context_column=s is empty; name the text that the row belongs to",
    ),
    (
        [{"sentence": "a", "s": [1]}],
        {"context_column": "s"},
        "row 0: context_column=s holds list; name the text that the row belongs to",
    ),
    (
        [{"sentence": "a", "s": s} for s in "aba"],
        {"context_column": "s"},
        "row 2: context_column=s has 'a' again after other values; put the rows of a text "
        "together, or give it another name where it is read again",
    ),
    ([{"sentence": "a"}], {"spillover": -1}, "spillover=-1: must be from 0 to 20"),
    (
        [{"sentence": "a"}],
        {"first_word": "scord"},
        "first_word=scord: expected scored",
    ),
    ([{"sentence": "a"}], {"joined_by": "x"}, "joined_by=x: expected space or newline"),
    (
        [{"sentence": "a"}],
        {"protocol": "stream"},
        "protocol=stream: in a table each row is a text of its own; for rows that are read on from "
        "each other name their context_column, under protocol=document",
    ),
]


@pytest.mark.parametrize(("frame", "settings", "message"), MISTAKES)
def test_what_is_refused(frame, settings, message):
    with pytest.raises(UserError) as error:
        tiny_model("word").table(frame, **settings)
    assert str(error.value) == message


def test_a_text_that_a_tokenizer_cannot_encode_is_named_by_its_row():
    trained = random_model(Pattern("Cl|.", ["$", "C", "Cl", "O"], "$"))
    rows = trained.table([{"sentence": "CCl"}, {"sentence": "O"}])
    assert [row["num_tokens"] for row in rows] == [2, 1]
    assert rows[0]["surprisal_corrected"] > rows[0]["surprisal"]  # with the end of the text
    with pytest.raises(UserError) as error:
        trained.table([{"sentence": "CO"}, {"sentence": "CN"}])
    told = "the vocabulary has no 'N', and no token for unknown text"
    assert str(error.value) == f"row 1: {told}"
    both = [{"sentence": "C", "s": 1}, {"sentence": "O", "s": 1}]
    with pytest.raises(UserError) as error:
        trained.table(both, context_column="s")
    assert str(error.value) == told.replace("N", " ")


def test_a_model_of_the_stream_reads_each_row_from_its_start():
    stream = random_model(all_tokenizers()["bpe"], protocol="stream")
    close(stream.table(ITEMS), tiny_model("bpe").table(ITEMS))


def test_the_names_are_those_that_the_document_explains():
    columns = Layout(spillover=1).columns(tiny_model("bpe"))
    assert columns[-3:] == ["surprisal_prev1", "surprisal_corrected_prev1", "length_prev1"]
    assert len(columns) == 13
