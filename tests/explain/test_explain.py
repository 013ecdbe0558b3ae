"""Looking changes no bit, on any mechanism; what is shown is what the definitions say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from longtape.attention import MECHANISMS
from longtape.core.errors import UserError
from longtape.explain.attention import (
    attention_maps,
    layers_of,
    member_of,
    record,
    recording,
    rollout,
    row_weights,
    sampled_rows,
)
from longtape.explain.effects import Effects, block_permutation, doubling_edges, levels_of
from longtape.explain.queries import graph, queries
from longtape.explain.spectrum import (
    effective_rank,
    energy_curve,
    energy_of,
    projection_error,
    rank_error,
    smallest_k,
)
from longtape.features.build import FeaturesConfig, build
from longtape.features.marks import Marks
from longtape.models.encoder import EncoderConfig, EncoderForecaster
from longtape.models.registry import build_model, config_of
from longtape.training.batches import BatchSource
from longtape.training.ensemble import Ensemble
from longtape.workflow.explain import PARTS, explain_run
from tests.candles import candles
from tests.models.inputs import inputs_of

OPTIONS = {
    "bigbird": {"block_size": 4, "n_random": 1}, "local": {"window_size": 5}, "longformer": {"window_size": 5},
    "linformer": {"k": 8}, "reformer": {"bucket_size": 8},
}  # fmt: skip
ORIGINS = np.arange(300, 308)


@pytest.fixture(scope="module")
def panel():
    return build(
        [candles(400)],
        FeaturesConfig(features=["log_return", "range"], targets=["return(6)", "volatility(6)"]),
    )


def model_on(panel, attention="bigbird", more=None, **options):
    torch.manual_seed(0)
    config = EncoderConfig(
        lookback=32,
        attention=attention,
        attention_options=OPTIONS.get(attention, {}) | (more or {}),
        d_model=16,
        n_heads=2,
        **options,
    )
    made = EncoderForecaster(config, inputs_of(panel, np.arange(50, 300)))
    made.fit(panel, np.arange(50, 250), np.arange(260, 300))
    for head in made.heads.values():
        torch.nn.init.normal_(head.linear.weight)
    return made.eval()


@pytest.mark.parametrize("attention", MECHANISMS)
def test_looking_changes_no_bit_and_every_mechanism_has_its_maps(attention, panel):
    model = model_on(panel, attention)
    batch = BatchSource(model, panel).batch(ORIGINS)
    with torch.no_grad():
        plain = model(batch).mean()
        with recording(model) as passed:
            seen = model(batch).mean()
        assert torch.equal(plain, seen)
        assert torch.equal(plain, model(batch).mean())
    assert len(passed) == 2
    for one in attention_maps(passed, window=3):
        assert one.weights.shape == (2, 32, 8 if attention == "linformer" else 32)
        assert torch.allclose(one.weights.sum(-1), torch.ones(2, 32), atol=1e-5)
    whole = attention_maps(passed, window=3)[1].weights
    few = attention_maps(passed, window=3, largest=5 * 2 * 32)[1]
    assert few.rows[-1] == 31
    assert len(few.rows) == 5
    assert torch.allclose(few.weights, whole[:, few.rows], atol=1e-6)
    assert torch.allclose(row_weights(passed[1])[3], whole[:, -1], atol=1e-6)


@pytest.mark.parametrize("pooling", ["last", "mean", "class", "attention"])
def test_rollout_is_the_product_of_the_layers(pooling, panel):
    model = model_on(panel, "full", pooling=pooling)
    batch = BatchSource(model, panel).batch(ORIGINS)
    passed = record(model, batch)
    read = model.pooled_weights(batch).detach()
    assert torch.allclose(read.sum(1), torch.ones(8))
    found, n = rollout(passed, read), passed[0].n_tokens
    product = torch.eye(n).expand(8, n, n)
    for one in passed:
        product = (0.5 * one.weights(torch.arange(n)).mean(1) + 0.5 * torch.eye(n)) @ product
    assert torch.allclose(found, torch.einsum("bn,bnm->bm", read, product), atol=1e-6)
    bars = model.token_bars()
    assert len(bars) == n
    assert bars[-1] == 31
    assert (bars[0] == -1) == (pooling == "class")


def test_tokens_of_patches_name_their_newest_bar(panel):
    model = model_on(panel, "full", patch=5)
    assert model.token_bars().tolist() == [1, 6, 11, 16, 21, 26, 31]


def test_what_does_not_exist_says_so(panel):
    linformer = model_on(panel, "linformer")
    batch = BatchSource(linformer, panel).batch(ORIGINS)
    with pytest.raises(UserError, match="linformer are over mixtures"):
        rollout(record(linformer, batch), linformer.pooled_weights(batch))
    with pytest.raises(UserError, match="linformer has none"):
        Effects(linformer, panel, ORIGINS).global_tokens()
    with pytest.raises(UserError, match="performer has no pattern"):
        graph(record(model_on(panel, "performer"), batch))
    with pytest.raises(UserError, match="queries are its keys"):
        queries(record(model_on(panel, "reformer"), batch)[0])
    zero = build_model(config_of("mean")(kind="mean"), inputs_of(panel, np.arange(50, 300)))
    with pytest.raises(UserError, match="no attention layers"):
        layers_of(zero)
    with pytest.raises(UserError, match="'mean' has no tokens"):
        zero.token_bars()


def test_rows_are_sampled_where_all_of_them_would_be_too_many():
    assert sampled_rows(10, 10, 100).tolist() == list(range(10))
    few = sampled_rows(100_000, 100_000, 2**22)
    assert len(few) * 100_000 <= 2**22
    assert few[-1] == 99_999


# --- effects ---


@pytest.mark.parametrize(
    ("attention", "names"),
    [
        (
            "bigbird",
            ["all", "tokens 0–3", "tokens 28–31", *(f"token {i}" for i in (0, 1, 2, 3, 28, 29, 30, 31))],
        ),
        ("longformer", ["all", "token 0"]),
    ],
)
def test_global_tokens_are_zeroed_together_and_alone(attention, names, panel):
    effects = Effects(model_on(panel, attention, pooling="mean"), panel, ORIGINS)
    found = effects.global_tokens()
    assert [one.name for one in found] == names
    assert all((one.without != one.whole).all() for one in found)
    assert len({one.without.tobytes() for one in found[1:]}) == len(found) - 1
    assert np.array_equal(effects.losses(), effects.whole)  # nothing of it stays


def test_of_many_global_tokens_evenly_spaced_ones_are_zeroed_alone(panel, monkeypatch):
    model = model_on(panel, "longformer", {"n_global": 32})
    monkeypatch.setattr("longtape.explain.effects.SINGLE", 5)
    found = Effects(model, panel, ORIGINS[:2]).global_tokens()
    assert [one.name for one in found] == ["all", "tokens 0–31", *(f"token {i}" for i in (0, 8, 16, 23, 31))]


@pytest.mark.parametrize("attention", ["bigbird", "longformer"])
def test_marked_tokens_are_zeroed_where_they_lie(attention, panel):
    rows = np.arange(0, 400, 10)
    marked = replace(panel, marks=Marks(rows, panel.known_at[rows], panel, 6))
    effects = Effects(model_on(marked, attention, {"n_global": 0}, pooling="mean"), marked, ORIGINS)
    found = effects.global_tokens()
    assert [one.name for one in found] == ["all", "mark 1", "mark 2", "mark 3", "mark 4"]
    held = (marked.mark_positions(ORIGINS, 32) >= 0).sum(1)
    assert set(held) == {3, 4}
    for back, one in enumerate(found[1:]):
        assert ((one.without != one.whole) == (held > back)).all()


def test_of_a_portfolio_global_tokens_are_those_of_its_own_sequence():
    config = FeaturesConfig(features=["log_return"], targets=["return(6)"])
    pair = build([candles(400), candles(400, seed=1, symbol="B")], config)
    torch.manual_seed(0)
    options = {"block_size": 2, "n_global": 1, "global_tokens": "last"}
    asked = config_of("portfolio")(
        kind="portfolio",
        lookback=16,
        attention="bigbird",
        attention_options=options,
        d_model=8,
        n_heads=1,
        n_layers=1,
    )
    model = build_model(asked, inputs_of(pair, np.arange(50, 300)))
    names = [one.name for one in Effects(model, pair, ORIGINS).global_tokens()]
    assert names == ["all", "tokens 28–31", "token 28", "token 29", "token 30", "token 31"]


def test_levels_of_a_book_are_exchanged_together(panel):
    names = [
        f"book(2, 0.01, 0.1).{side}_{what}_{i}"
        for i in (1, 2)
        for side in ("bid", "ask")
        for what in ("ticks", "log_size")
    ]
    assert levels_of([*names, "spread"]) == {
        "bid 1": [0, 1],
        "ask 1": [2, 3],
        "bid 2": [4, 5],
        "ask 2": [6, 7],
    }
    with pytest.raises(UserError, match="no feature is of a single level"):
        Effects(model_on(panel), panel, ORIGINS).levels(block=2)


MISSING = {
    "full": {"Global tokens", "Graph"},
    "flash": {"Global tokens", "Graph"},
    "local": {"Global tokens"},
    "longformer": {"Graph"},
    "bigbird": set(),
    "linformer": {
        "The newest position over time",
        "Most attended bars",
        "Global tokens",
        "Error of rank k",
        "Graph",
    },
    "performer": {"Global tokens", "Graph"},
    "reformer": {"Global tokens", "Graph", "Queries"},
    "probsparse": {"Global tokens", "Graph"},
}


@pytest.mark.parametrize("attention", MECHANISMS)
def test_every_mechanism_is_explained_and_names_what_it_lacks(attention, panel, tmp_path):
    found = explain_run(model_on(panel, attention), panel, ORIGINS, [candles(400)], tmp_path, 4)
    assert set(found.missing) == MISSING[attention] | {"Assets", "Levels", "Levels that matter"}
    assert set(found.parts) == set(PARTS) - set(found.missing)
    assert {path.name for path in tmp_path.glob("*.png")} == set(found.pictures)


def test_losses_do_not_depend_on_how_windows_are_batched(panel):
    model = model_on(panel)
    whole, parts = (Effects(model, panel, ORIGINS, size).whole for size in (8, 3))
    assert np.allclose(whole, parts, rtol=1e-5)


def test_rows_before_the_window_are_a_feature_of_a_model_that_reads_them(panel):
    names = [one.name for one in Effects(model_on(panel), panel, ORIGINS).features(block=2)]
    assert names == ["TEST log_return", "TEST range", "rows before the window"]


def test_blocks_keep_together_and_leave_their_places():
    order = block_permutation(100, 10, seed=0)
    assert sorted(order) == list(range(100))
    assert (order != np.arange(100)).all()
    assert (np.diff(order) == 1).sum() >= 90
    assert block_permutation(5, 10, 0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("lookback", "edges"),
    [(1, [0, 1]), (2, [0, 1, 2]), (8, [0, 1, 2, 4, 8]), (100, [0, 1, 2, 4, 8, 16, 32, 64, 100])],
)
def test_distances_double_up_to_the_lookback(lookback, edges):
    assert doubling_edges(lookback) == edges


# --- spectrum, queries, graph ---


def test_energy_and_rank_of_known_matrices():
    assert effective_rank(energy_curve(torch.eye(20))) == 19
    assert effective_rank(energy_curve(torch.ones(20, 20))) == 1
    curve = energy_curve(torch.diag(torch.tensor([3.0, 4.0, 0.0])))[None]
    assert curve[0].tolist() == pytest.approx([16 / 25, 1, 1])
    assert rank_error(curve, 1) == pytest.approx(3 / 5)
    assert smallest_k(curve, 0.6) == 1
    assert smallest_k(curve, 0.5) == 2


def test_the_projection_error_falls_with_k(panel):
    model = model_on(panel, "flash")
    passed = record(model, BatchSource(model, panel).batch(ORIGINS))[0]
    errors = [projection_error(passed, k, seeds=20) for k in (2, 8, 64)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] == pytest.approx(errors[1] * 8**-0.5, rel=0.3)  # as k to the power −½
    assert energy_of(passed).shape == (2, 32)


@pytest.mark.parametrize("attention", ["probsparse", "full"])
def test_peaked_queries_are_active(attention, panel):
    model = model_on(panel, attention)
    found = queries(record(model, BatchSource(model, panel).batch(ORIGINS))[0], factor=2)
    assert found.chosen == (attention == "probsparse")
    assert (found.kl <= found.m + 1e-5).all()
    assert (found.kl >= found.m - np.log(32) - 1e-5).all()
    assert 0 < found.share_active < 1


def test_the_graph_of_a_pattern(panel):
    model = model_on(panel, "local")
    found = graph(record(model, BatchSource(model, panel).batch(ORIGINS)))
    assert found.hops == 16  # 31 bars at two a layer
    assert found.layers == 2
    assert found.density == pytest.approx((32 * 5 - 6) / 32**2)


def test_of_an_average_the_first_member_is_looked_at(panel):
    first = model_on(panel)
    both = Ensemble([first, model_on(panel)])
    assert len(layers_of(first)) == 2
    assert member_of(both) is first
    assert member_of(first) is first
