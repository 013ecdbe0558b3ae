from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtape.core.errors import UserError
from longtape.features.expression import Expression, parse


@pytest.mark.parametrize(
    "text",
    [
        "log_return",
        "volatility(20)",
        "zscore(close, 100)",
        "zscore(volatility(20), n=100)",
        'resample("4h").momentum(20)',
        'of("ETHUSDT").log_return',
        'of("ETHUSDT").resample("1d").rsi(14)',
        'beta(log_return, of("BTCUSDT").log_return, 100)',
        "direction(1, 0.001)",
        "lag(close, -3)",
    ],
)
def test_text_and_expression_are_the_same(text: str) -> None:
    assert str(parse(text)) == text


def test_prefixes_apply_from_the_outside_in() -> None:
    found = parse("of('ETHUSDT').resample('4h').momentum(20)")
    assert found == Expression("momentum", (20,), (), (("of", "ETHUSDT"), ("resample", "4h")))


def test_a_word_that_python_keeps_is_a_name_here() -> None:
    assert parse("return(24)") == Expression("return", (24,))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "rsi(14",
        "1",
        "'close'",
        "close + 1",
        "close.real",
        "lambda: 1",
        "[c for c in close]",
        "f(*a)",
        "f(**a)",
        "f(True)",
        "f(None)",
        "f(x)(y)",
        "of(ETHUSDT).close",
        "of('A', 'B').close",
        "a" * 301,
        "(" * 200 + ")" * 200,
        "\x00",
    ],
)
def test_what_is_no_expression_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse(text)
    assert "\n" not in str(error.value)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_text_does_anything_else_than_parse_or_be_refused(text: str) -> None:
    with suppress(UserError):
        assert isinstance(parse(text), Expression)
