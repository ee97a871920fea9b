"""SyntaxGym's formulas against Python's own arithmetic."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmkit.errors import UserError
from lmkit.suite.formula import MAX_DEPTH, Formula, Region

SURPRISALS = {"a": {1: 3.5, 2: 8.25}, "b-c_d": {1: 3.5, 2: 1.0}}


def by_hand(text, surprisals):
    """A formula as Python's: regions become numbers, `=` and the logical signs Python's words."""

    def number(match):
        regions = surprisals[match[2]]
        return repr(sum(regions.values()) if match[1] == "*" else regions[int(match[1])])

    text = re.sub(r"\((\d+|\*);%([^%]*)%\)", number, text)
    text = text.replace("[", "(").replace("]", ")")
    text = text.replace("&", " and ").replace("|", " or ").replace("=", "==")
    return eval(text)


regions = st.sampled_from(["(1;%a%)", "(2;%a%)", "(1;%b-c_d%)", "(2;%b-c_d%)", "(*;%a%)"])
numbers = st.one_of(regions, st.sampled_from(["0", "2", "1.5"]))


def joined(signs, operands, brackets):
    return st.tuples(operands, st.sampled_from(signs), operands, st.sampled_from(brackets)).map(
        lambda t: f"{t[3][:1]}{t[0]} {t[1]}{t[2]}{t[3][1:]}"
    )


sums = st.recursive(numbers, lambda inner: joined(["+", "-", "*"], inner, ["", "()", "[]"]))
comparisons = joined(["<", ">"], sums, ["()", "[]"])
formulas = st.recursive(comparisons, lambda inner: joined(["&", "|"], inner, ["", "[]"]))


@given(formulas)
def test_a_formula_is_pythons_arithmetic(text):
    assert Formula.parse(text).outcome(SURPRISALS).holds == by_hand(text, SURPRISALS)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("(1;%a%) - (2;%b-c_d%) + (2;%a%) > 10", True),  # from the left: 3.5 - 1 + 8.25
        ("(1;%a%)>0 & (2;%a%)>0 & (2;%b-c_d%)>5", False),  # all of three
        ("(1;%a%)>5 | (2;%a%)>0 & (2;%b-c_d%)>0", True),
        ("( * ; %a% ) = 11.75", True),
        ("(1;%a%) = 3.5009", True),  # as in syntaxgym-core, 0.001 bits and 1e-5 of them
        ("(1;%a%) = 3.502", False),
        ("-(1;%a%) < -3", True),
        ("(2;%a%) / (2;%b-c_d%) > 8", True),
    ],
)
def test_the_signs(text, holds):
    assert Formula.parse(text).outcome(SURPRISALS) == (holds, False)


def test_equals_are_no_success_and_a_tie():
    formula = Formula.parse("(1;%a%) < (1;%b-c_d%)")
    assert formula.outcome(SURPRISALS) == (False, True)
    other = Formula.parse("(1;%a%) < (1;%b-c_d%) | (1;%a%) > (2;%b-c_d%)")
    assert other.outcome(SURPRISALS) == (True, False)


def test_numbers_that_are_none_are_no_success():
    assert not Formula.parse("(1;%a%) < 2").outcome({"a": {1: math.nan}}).holds


def test_its_regions():
    formula = Formula.parse("[(1;%a%) + (*;%b%)] > 0")
    assert formula.regions() == [Region("a", 1), Region("b", None)]
    assert [str(region) for region in formula.regions()] == ["(1;%a%)", "(*;%b%)"]


EXPECTED = "expected a region such as (5;%condition%), a number or a bracket"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"column 1: {EXPECTED}, found the end"),
        ("(1;%a%) <", f"column 10: {EXPECTED}, found the end"),
        ("(1;%a%) < & 2", f"column 11: {EXPECTED}, found '&'"),
        ("(1;%a%) ? 2", "column 9: expected an operator or the end, found '?'"),
        ("(1;%a) > 2", "column 3: expected an operator or ')', found ';'"),
        ("[(1;%a%) > 2", "column 13: expected an operator or ']', found the end"),
        ("[(1;%a%) > 2)", "column 13: expected an operator or ']', found ')'"),
        ("(1;%a%) > 2 > 1", "column 13: expected an operator or the end, found '>'"),
        ("(1;%a%) + 2", "it compares nothing: expected <, > or = between two sums"),
        ("(1;%a%) & 2 > 1", "column 1: expected a comparison, found a sum of surprisals"),
        ("[1 > 2] + 3 > 1", "column 1: expected a sum of surprisals, found a comparison"),
        ("(" * 60 + "1" + ")" * 60, f"it has brackets more than {MAX_DEPTH} within each other"),
    ],
)
def test_what_is_no_formula(text, message):
    with pytest.raises(UserError) as error:
        Formula.parse(text)
    assert str(error.value) == message
