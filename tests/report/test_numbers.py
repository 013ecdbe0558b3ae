"""Numbers as people write them."""

from datetime import UTC, datetime

import pytest

from longtape.report.numbers import (
    change,
    column_format,
    duration,
    fixed,
    moment,
    money,
    p_value,
    percent,
    plain,
    price,
    ratio,
    significant,
    typeset,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (ratio, -0.0577, "−0.06"),
        (ratio, -0.0028, "0.00"),
        (ratio, NAN, "–"),
        (ratio, float("-inf"), "−∞"),
        (percent, 0.1013, "10.1 %"),
        (change, 0.0031, "+0.31 %"),
        (change, -0.25, "−25.0 %"),
        (change, 0.000001, "0.00 %"),
        (p_value, 0.00001, "< 0.001"),
        (p_value, 0.0312, "0.03"),
        (p_value, 0.0061, "0.006"),
        (p_value, None, "–"),
        (significant, 0.38213, "0.382"),
        (significant, -1234.5, "−1,234"),
        (significant, 0.0, "0"),
        (significant, 1.23e-9, "1.23 × 10⁻⁹"),
        (price, 64_210.5, "64,210"),
        (price, 1834.3, "1,834.30"),
        (price, 0.23415, "0.23415"),
        (money, 10_959.59, "10,960"),
        (money, 6.639, "6.64"),
        (duration, 0.19, "0.19 s"),
        (duration, 75, "1 min 15 s"),
        (duration, 7200, "2 h"),
        (duration, 76 * 86_400 + 16 * 3600, "76 days 16 h"),
        (duration, 3 * 31_557_600, "3.0 years"),
        (plain, True, "yes"),
        (plain, 12_000, "12,000"),
        (plain, None, "–"),
        (plain, datetime(2024, 1, 2, 3, 4, tzinfo=UTC), "2024-01-02 03:04"),
    ],
)
def test_a_value_is_written_as_people_write_it(form, value, text):
    assert form(value).replace("\u00a0", " ") == text


def test_days_alone_have_no_hour():
    assert moment(datetime(2024, 1, 2, tzinfo=UTC), whole_days=True) == "2024-01-02"
    assert fixed(1e6, 0) == "1,000,000"


@pytest.mark.parametrize(
    ("name", "values", "written"),
    [
        ("Sharpe", [0.6234, -1.0283], ["0.62", "−1.03"]),
        ("max drawdown %", [-15.87, 0.0], ["−15.9 %", "0.0 %"]),
        ("p, differs from longtape", [None, 0.0001], ["–", "< 0.001"]),
        ("QLIKE", [0.3821, 1.0185], ["0.382", "1.018"]),
        ("fills", [394, 1542], ["394", "1,542"]),
        ("MSE", [0.00011, 0.0000993], ["0.000110", "0.0000993"]),
        ("macro F1 2.5 %", [0.237], ["0.237"]),
        ("model", ["zero"], ["zero"]),
    ],
)
def test_a_column_is_written_alike(name, values, written):
    form = column_format(name, values)
    assert [form(value).replace("\u00a0", " ") for value in values] == written


def test_sentences_get_real_signs_and_keep_hyphens():
    said = typeset("Sharpe -0.06 after costs, -3.2% to 5%, log-HAR 2024-01-02, return(-1)")
    assert (
        said.replace("\u00a0", " ")
        == "Sharpe −0.06 after costs, −3.2 % to 5 %, log-HAR 2024-01-02, return(−1)"
    )
