"""Which names are those of secrets, and texts without what is hidden."""

import io
import json
import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmkit.config.binding import signature_keys
from lmkit.config.compose import compose
from lmkit.config.groups import CONF
from lmkit.config.targets import SLOTS, resolve_target
from lmkit.system import redaction
from lmkit.system.redaction import (
    Redacting,
    hide,
    hide_arguments,
    is_secret_key,
    is_secret_variable,
    mask,
    redact,
    redacted,
    redacted_output,
)


@pytest.mark.parametrize(
    "key",
    [
        *("api_key", "apikey", "wandb_api_key", "API_KEY", "secret", "client_secret", "password"),
        *("passwd", "db_password", "credential", "credentials", "basic_auth", "auth", "use_auth"),
        *("hf_token", "token", "auth_token", "access_token", "private_key", "aws_access_key_id"),
        "logger.comet.api_key",
    ],
)
def test_keys_of_secrets(key):
    assert is_secret_key(key)


@pytest.mark.parametrize(
    "key",
    [
        *("num_tokens", "tokens", "tokenizer", "eos", "eos_token", "unk_token", "pad_token"),
        *("token_ids", "author", "num_authors", "by_author", "key", "monitor", "keep", "path"),
        *("tokenizer.path", "secret_santa.monitor"),
    ],
)
def test_keys_of_no_secrets(key):
    assert not is_secret_key(key)


def leaves(node, path=""):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}")
    else:
        yield path


def test_no_key_of_lmkit_is_taken_for_a_secret():
    found = 0
    for group in sorted(SLOTS):
        for file in (CONF / group).glob("*.yaml"):
            config = compose([f"{group}={file.stem}"]).config
            names = [path for path in leaves(config) if is_secret_key(path)]
            nodes = config[group] if isinstance(config[group], dict) else {}
            for node in (nodes, *nodes.values()):
                if isinstance(node, dict) and "_target_" in node:
                    keys = signature_keys(resolve_target(node["_target_"]))
                    names += [key for key in keys if is_secret_key(key)]
                    found += len(keys)
            assert names == []
    assert found > 100


def test_variables_of_secrets():
    secret = ("WANDB_API_KEY", "HF_TOKEN", "MY_SECRET_KEY", "DB_PASSWORD", "PROXY_AUTH", "GH_PAT")
    assert all(map(is_secret_variable, secret))
    harmless = ("GIT_AUTHOR_NAME", "TOKENIZERS_PARALLELISM", "PATH", "PWD", "HOME", "NUM_TOKENS")
    assert not any(map(is_secret_variable, harmless))


def test_the_values_of_secret_variables_are_hidden_however_they_are_written(monkeypatch):
    value = 'p@ss "word"\n/ü\\'
    monkeypatch.setenv("DB_PASSWORD", value)
    for text in (value, repr(value), json.dumps(value), quote(value, safe=""), str([value])):
        assert redact(f"<{text}>") in ("<***>", "<'***'>", '<"***">', "<['***']>")


def test_the_longer_of_two_values_goes_first(monkeypatch):
    monkeypatch.setenv("A_SECRET", "abcdefgh")
    monkeypatch.setenv("B_SECRET", "abcdefghijkl")
    assert redact("abcdefghijkl abcdefghi") == "*** ***i"


def test_a_line_of_a_secret_is_one(monkeypatch):
    monkeypatch.setenv("SIGNING_PRIVATE_KEY", "-----BEGIN\nabcdefghijkl\nend\n")
    assert redact("read abcdefghijkl to the end") == "read *** to the end"


def test_short_values_blank_out_no_words(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", "the")
    hide("model")
    assert redact("the model") == "the model"


@given(st.text(string.ascii_letters, min_size=8), st.text(), st.text())
def test_what_is_hidden_is_in_no_text(value, before, after):
    redaction._hidden.clear()
    hide(value)
    assert value not in redact(before + value + after)
    assert value not in json.dumps(redacted({"a": [before + value], "b": 1}))


def test_the_user_of_a_url_is_hidden():
    assert redact("git clone https://me:pw@host/x; ssh://git@host") == (
        "git clone https://***@host/x; ssh://***@host"
    )
    assert redact("mail me@host, see https://host/a@b") == "mail me@host, see https://host/a@b"


@pytest.mark.parametrize(
    ("argument", "masked"),
    [
        ("logger.api_key=abc", "logger.api_key=***"),
        ("++data.token=a=b", "++data.token=***"),
        ("--password=abc", "--password=***"),
        ("logger.x={api_key: abc, name: a}", "logger.x={api_key: ***, name: a}"),
        ("logger.x={'hf_token': 'a b', n: 1}", "logger.x={'hf_token': ***, n: 1}"),
        ("num_tokens=5", "num_tokens=5"),
        ("tokenizer=word", "tokenizer=word"),
        ("text=a token is a word", "text=a token is a word"),
    ],
)
def test_arguments_are_masked(argument, masked):
    assert mask(argument) == masked


def test_what_a_command_line_holds_under_a_secret_key_is_hidden_from_messages():
    hide_arguments(["logger.x.api_key='Canary-1'", "logger={y: {password: Canary-2}}", "name=abcd"])
    assert redact("Canary-1 Canary-2 abcd") == "*** *** abcd"


def test_a_stream_redacts_what_is_written_and_is_itself_otherwise(monkeypatch, capsys):
    monkeypatch.setenv("DB_PASSWORD", "Canary-3")
    stream = io.StringIO()
    print("say", "Canary-3", file=Redacting(stream))
    assert stream.getvalue() == "say ***\n"
    assert Redacting(stream).isatty() is False
    with redacted_output():
        print("Canary-3")
    print("Canary-3")
    assert capsys.readouterr().out == "***\nCanary-3\n"
