"""Words of a list of another program."""

import pytest

from lmkit import cli
from lmkit.errors import UserError
from lmkit.tokenizer import Word, WordList

WORDS = ["</s>", "the", "cat", "ü", "<unk>"]


@pytest.mark.parametrize(
    "text",
    ["\n".join(WORDS), "".join(f"{word}\t{i}\n" for i, word in reversed([*enumerate(WORDS)]))],
)
def test_the_ids_are_those_of_the_list(tmp_path, text):
    (tmp_path / "list.txt").write_text(text)
    tokenizer = WordList(str(tmp_path / "list.txt")).resolved()
    assert type(tokenizer) is Word
    assert tokenizer.encode(["the cat\nA ü"]).ids.tolist() == [1, 2, 0, 4, 3, 0]
    lower = WordList(str(tmp_path / "list.txt"), lower=True).resolved()
    assert lower.encode(["THE Cat"]).ids.tolist() == [1, 2, 0]


def test_a_run_is_trained_with_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("\n".join(WORDS))
    text = "\n\n".join(f"the cat {i}" for i in range(200))
    (tmp_path / "text.txt").write_text(text)
    data = ["data=files", "data.path=text.txt", "data.unit=paragraph", "trainer.accelerator=cpu"]
    tokenizer = ["tokenizer=wordlist", "tokenizer.path=list.txt"]
    small = ["trainer.max_steps=2", "data.batch_size=2", "model.hidden_size=4", "threads=1"]
    arguments = [*data, *tokenizer, *small, "model.embedding_size=4", "run_id=one"]
    assert cli.main(["train", *arguments]) == 0
    assert cli.main(["score", "one", "text=the dog"]) == 0
    assert '"token": 4, "piece": " dog"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("a\nb", {}, "list.txt has none of <eos>, .* that ends a sentence: name it with eos="),
        ("a\nb", {"eos": "c"}, "list.txt has no 'c', the word that ends a sentence"),
        ("a\na\n", {}, "list.txt has the word 'a' twice"),
        ("a 0\nb 2", {}, "expected each word's id, from 0 to 1, once"),
    ],
)
def test_lists_of_no_use(tmp_path, text, settings, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        WordList(str(tmp_path / "list.txt"), **settings)
    with pytest.raises(UserError, match=r"tokenizer\.path=none: cannot read none"):
        WordList("none")
