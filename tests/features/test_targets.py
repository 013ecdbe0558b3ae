import math

import numpy as np
import pytest

from longtape.core.clock import DAY, HOUR, to_milliseconds
from longtape.core.errors import UserError
from longtape.features.build import FeaturesConfig, build
from longtape.features.catalogue import targets
from longtape.features.panel import Panel
from tests.features.tables import START, as_bars, columns

ROWS = 200
EVERY = [
    "return(24)",
    "open_return(5)",
    "path(6)",
    "volatility(24)",
    "direction(3, 0.005)",
    "up(1)",
    "mid_direction(5, 0.001)",
    "smoothed_direction(5)",
]


def panel(values: dict[str, np.ndarray], *names: str) -> Panel:
    return build([as_bars(values)], FeaturesConfig(features=["close"], targets=list(names)))


def test_every_target_is_tried() -> None:
    assert {name.split("(")[0] for name in EVERY} == set(targets())


@pytest.mark.parametrize("name", EVERY)
def test_a_label_is_known_exactly_when_its_end_has_come(name: str) -> None:
    values = columns(ROWS)
    found = panel(values, name)
    last = found.known_at[-1] if name != "open_return(5)" else found.timestamps[-1]
    assert (np.isnan(found.targets) == (found.target_ends > last)).all()
    for k, column in enumerate(found.target_columns):
        assert column.name == name
        step = column.horizon * HOUR - (HOUR if name == "open_return(5)" else 0)
        assert (found.target_ends[:, k] - found.known_at == step).all()


@pytest.mark.parametrize("name", EVERY)
def test_labels_known_by_a_moment_do_not_change_with_what_follows(name: str) -> None:
    values, cut = columns(ROWS), 120
    whole, short = panel(values, name), panel({n: v[:cut] for n, v in values.items()}, name)
    known = ~np.isnan(short.targets)
    assert known.any()
    assert short.targets[known].tobytes() == whole.targets[:cut][known].tobytes()
    np.testing.assert_array_equal(short.target_ends, whole.target_ends[:cut])


def test_labels_by_hand() -> None:
    values = {name: v.copy() for name, v in columns(6).items()}
    values["close"] = np.array([100.0, 110.0, 99.0, 99.0, 120.0, 60.0])
    values["open"] = np.array([100.0, 101.0, 109.0, 98.0, 100.0, 119.0])
    values["high"], values["low"] = np.full(6, 200.0), np.full(6, 50.0)
    found = panel(
        values, "return(2)", "open_return(2)", "direction(1, 0.05)", "up(1)", "volatility(2)", "path(2)"
    )
    first = found.targets[0]
    np.testing.assert_allclose(first[:2], [math.log(0.99), math.log(98 / 101)])
    np.testing.assert_array_equal(found.targets[:5, 2], [2.0, 0.0, 1.0, 2.0, 0.0])
    np.testing.assert_array_equal(found.targets[:5, 3], [1.0, 0.0, 0.0, 1.0, 0.0])
    np.testing.assert_allclose(first[4], math.hypot(math.log(1.1), math.log(0.9)))
    np.testing.assert_allclose(first[5:], [math.log(1.1), math.log(0.99)])
    assert [c.kind for c in found.target_columns] == [
        "return",
        "return",
        "direction",
        "up",
        "volatility",
        *["path"] * 2,
    ]
    assert found.target_columns[2].options == (("band", 0.05),)


def test_smoothed_mid_prices_by_hand() -> None:
    values = columns(5)
    mid = np.array([100.0, 101.0, 101.0, 99.0, 99.0])
    values["bid_price_1"], values["ask_price_1"] = mid - 1.0, mid + 1.0
    found = panel(values, "mid_direction(2, 0.005)", "mid_direction(2, 0.015)")
    np.testing.assert_array_equal(found.targets[:, 0], [2.0, 0.0, 0.0, np.nan, np.nan])
    np.testing.assert_array_equal(found.targets[:, 1], [1.0, 1.0, 0.0, np.nan, np.nan])


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("return(0)", "at least 1"),
        ("direction(1, -0.1)", "band"),
        ("return(200)", "200 bars ahead"),
        ("path(1000000000)", "1,000,000,000 steps"),
        ("return(1000000000)", "1000000000 bars ahead"),
        ('resample("4h").return(1)', "resample"),
        ("close", "unknown target"),
    ],
)
def test_a_mistake_is_told_in_one_line(name: str, word: str) -> None:
    with pytest.raises(UserError, match=word) as error:
        panel(columns(ROWS), name)
    assert "\n" not in str(error.value)


def test_ends_past_the_data_of_an_exchange_skip_its_holidays() -> None:
    start = to_milliseconds("2024-12-23")
    found = build(
        [as_bars(columns(2), interval="1d", start=start, calendar="XNYS")],
        FeaturesConfig(features=["close"], targets=["return(1)"]),
    )
    assert found.target_ends[:, 0].tolist() == [start + 2 * DAY, start + 4 * DAY]


def test_the_first_label_starts_at_the_close_of_its_bar() -> None:
    found = panel(columns(ROWS), "return(1)")
    assert found.known_at[0] == START + HOUR
    assert found.target_ends[0, 0] == START + 2 * HOUR
