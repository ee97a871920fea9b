"""Hydra's sweep syntax on the command line, told apart from what all trials share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmkit.config.compose import compose
from lmkit.config.groups import CONF, group_options
from lmkit.errors import UserError
from lmkit.sweep.search import Dimension, split

OWN = ("num_trials", "sampler")


def dimension(argument: str) -> Dimension:
    (found,) = split([argument], OWN).dimensions
    return found


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("model=lstm,gru", ("lstm", "gru")),
        ("model.hidden_size=choice(100,200)", ("100", "200")),
        ("model.num_layers=range(1,4)", ("1", "2", "3")),
        ("optimizer.lr=1e-3,1e-2,0.001", ("1e-3", "1e-2")),
        ("tokenizer.eos=1_000,012,null,'a,b'", ("1_000", "012", "null", "'a,b'")),
        ("optimizer.betas=[0.9,0.99],[0.8,0.9]", ("[0.9,0.99]", "[0.8,0.9]")),
        ("+trainer.overfit_batches=1,2", ("1", "2")),
    ],
)
def test_a_list_of_values(argument, values):
    found = dimension(argument)
    assert found.values == values
    assert found.key == argument.partition("=")[0].lstrip("+")
    assert found.argument("X") == argument.partition("=")[0] + "=X"


@pytest.mark.parametrize(
    ("value", "low", "high", "log"),
    [
        ("interval(0,0.5)", 0.0, 0.5, False),
        ("tag(log,interval(1e-4,1e-2))", 1e-4, 1e-2, True),
        ("int(interval(10,400))", 10, 400, False),
        ("int(tag(log,interval(1,100)))", 1, 100, True),
    ],
)
def test_an_interval(value, low, high, log):
    found = dimension(f"a.b={value}")
    assert (found.low, found.high, found.log) == (low, high, log)
    assert isinstance(found.low, int) == value.startswith("int(")
    assert found.examples()[:2] == (low, high)


def test_what_is_shared_what_is_the_commands_and_flags_are_kept_apart(tmp_path):
    flags = ("--config-dir", str(tmp_path))
    search = split([*flags, "seed=3", "num_trials=4", "a.b=1,2", "data.path=x,y"], OWN)
    assert (search.flags, search.fixed, search.own) == (
        flags,
        ("seed=3", "data.path=x,y"),  # a path is taken as it stands
        ("num_trials=4",),
    )
    assert search.first() == [*flags, "seed=3", "data.path=x,y", "a.b=1"]


def test_the_last_line_that_sets_a_key_wins():
    assert split(["a=1,2", "b=1,2", "a=3"], OWN).fixed == ("a=3",)
    assert [d.source for d in split(["a=3", "a=1,2"], OWN).dimensions] == ["a=1,2"]


def test_a_grid_varies_the_last_key_fastest():
    points = split(["a=1,2", "b=x,y"], OWN).grid()
    assert points == [{"a": a, "b": b} for a in "12" for b in "xy"]


def test_a_preset_stands_before_the_command_line(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(
        "optimizer.lr: tag(log, interval(1e-4, 1e-2))\nmodel.dropout: 0,0.5\nnum_trials: 7\n"
    )
    search = split(
        ["--config-dir", str(tmp_path), "sweep=mine", "model.dropout=0.1", "seed=2"], OWN
    )
    assert [d.key for d in search.dimensions] == ["optimizer.lr"]
    assert search.fixed == ("model.dropout=0.1", "seed=2")
    assert search.own == ("num_trials=7",)


@pytest.mark.parametrize("name", group_options([CONF])["sweep"])
def test_every_preset_composes(name):
    search = split([f"sweep={name}"], ("num_trials", "sampler", "pruner"))
    for value in search.dimensions[-1].examples():
        firsts = [d.examples()[0] for d in search.dimensions[:-1]]
        assert not compose(search.arguments([*firsts, value])).mistakes


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["seed=1"], "lmkit sweep needs a key with several values"),
        (["run_id=a,b"], "run_id=a,b: a sweep names its trials itself; give one value"),
        (["a=interval(2,1)"], "a=interval(2,1): an interval goes up, found 2.0 to 1.0"),
        (
            ["a=tag(log,interval(0,1))"],
            "a=tag(log,interval(0,1)): an interval goes up from above 0, found 0.0 to 1.0",
        ),
        (["model=glob(*)"], "model=glob(*): a sweep takes a list a,b or choice, range, interval"),
        (["a=shuffle(1,2)"], "a=shuffle(1,2): a sweep takes a list a,b or choice, range, interval"),
        (["a=choice(0,null)"], "a=choice(0,null): TypeError while evaluating 'choice(0,null)'"),
        (["a=range(8,8)"], "a=range(8,8): there is no such value, and so nothing to run"),
        (["a=range(0,1e9)"], "a=range(0,1e9): has more than 10,000 values; name fewer"),
        (["a=range(0,inf)"], "a=range(0,inf): has more than 10,000 values; name fewer"),
        *(
            ([f"a={r}"], f"a={r}: a range goes from one number to another in steps other than 0")
            for r in ("range(0,5,0)", "range(0.5,5,0)", "range(nan,1)")
        ),
        (["sweep=lstn"], "sweep=lstn: no such option of sweep; did you mean lstm?"),
    ],
)
def test_mistakes(argv, message):
    with pytest.raises(UserError) as error:
        split(argv, OWN)
    assert str(error.value).startswith(message)


def test_a_grid_needs_lists():
    with pytest.raises(UserError, match=r"sampler=grid: b can be any number of an interval; list"):
        split(["a=1,2", "b=interval(0,1)"], OWN).grid()


@given(st.lists(st.integers(-1000, 1000) | st.floats(-1e6, 1e6), min_size=2, unique=True))
def test_the_values_are_those_that_were_written(numbers):
    found = dimension("a.b=" + ",".join(map(repr, numbers)))
    assert [float(value) for value in found.values] == list(dict.fromkeys(map(float, numbers)))
