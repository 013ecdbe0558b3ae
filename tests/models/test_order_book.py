"""The order-book model: tokens of levels, every mechanism, and the closed forms beside it."""

import numpy as np
import pytest
import torch

from longtape.attention import MECHANISMS, attention_weights
from longtape.core.errors import UserError
from longtape.explain.assets import level_maps
from longtape.explain.attention import record
from longtape.features.book_targets import with_classes
from longtape.features.build import FeaturesConfig, build
from longtape.models.book_baselines import PENALTY, BookLogit, ImbalanceSign, multinomial_logit
from longtape.models.order_book import OrderBook, OrderBookConfig
from longtape.training.batches import BatchSource
from tests.books import books
from tests.models.inputs import inputs_of

TRAIN = np.arange(20, 300)
OPTIONS = {
    "bigbird": {"block_size": 4},
    "longformer": {"window_size": 5},
    "local": {"window_size": 5},
    "linformer": {"k": 8},
    "reformer": {"bucket_size": 8},
}


@pytest.fixture(scope="module")
def panel():
    config = FeaturesConfig(
        features=["book(3, 0.01, 0.1)", "book_imbalance(3)"],
        targets=["smoothed_direction(3)", "smoothed_direction(9)"],
    )
    return with_classes(build([books(400)], config), TRAIN)


def model(panel, **options):
    torch.manual_seed(0)
    named = {"levels": 3, "lookback": 8, "attention": "flash", "d_model": 8, "n_heads": 2, "dropout": 0.0}
    made = OrderBook(OrderBookConfig(**(named | options)), inputs_of(panel, TRAIN))
    made.fit(panel, TRAIN, TRAIN)
    return made.eval()


@pytest.mark.parametrize("tokens", ["snapshot", "level"])
@pytest.mark.parametrize("name", list(MECHANISMS))
def test_every_mechanism_begins_at_the_logit_and_learns(panel, name, tokens):
    made = model(panel, attention=name, attention_options=OPTIONS.get(name, {}), tokens=tokens)
    batch = BatchSource(made, panel).batch(np.arange(50, 58))
    found = made(batch)
    assert found.probabilities().shape == (8, 2, 3)
    start = BookLogit(1, 2)
    start.fit(panel, made.inputs.kinds["terciles"], TRAIN, TRAIN, lambda rows: rows)
    expected = start(batch.x, batch.rows)[:, 0].softmax(-1)
    assert torch.allclose(found.probabilities(), expected, atol=1e-6)
    made.train()
    optimizer = torch.optim.Adam(made.parameters(), 0.02)
    losses = []
    for _ in range(8):
        loss = made(batch).loss(batch.y, batch.y_present)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.02


def test_tokens_of_levels_climb_the_price_ladder(panel):
    """A change of one level of one snapshot changes the one token that stands at its price, before attention."""
    made = model(panel, tokens="level", positions="none")
    names = [column.name.rpartition(".")[2] for column in panel.columns]
    x = made.scaling(BatchSource(made, panel).batch(np.array([60])).x)
    ladder = ["bid_ticks_3", "bid_ticks_2", "bid_ticks_1", "ask_ticks_1", "ask_ticks_2", "ask_ticks_3"]
    for place, name in enumerate(ladder):
        other = x.clone()
        other[0, 5, names.index(name)] += 1.0
        moved = (made.embedding(other) != made.embedding(x)).any(-1).flatten().nonzero().flatten().tolist()
        assert moved == [5 * 6 + place]
    beside = x.clone()
    beside[0, 5, names.index("book_imbalance(3)")] += 1.0
    moved = (made.embedding(beside) != made.embedding(x)).any(-1).flatten().nonzero().flatten().tolist()
    assert moved == list(range(30, 36))


def test_what_it_cannot_do_is_refused(panel):
    with pytest.raises(UserError, match=r"name the feature book\(4"):
        model(panel, levels=4)
    returns = build([books(100)], FeaturesConfig(features=["book(3)"], targets=["return(3)"]))
    kinds = {column.kind: column.of_kind for column in returns.target_columns}
    with pytest.raises(UserError, match="forecasts classes"):
        OrderBookConfig().refuse_targets(kinds)


def test_the_logit_stands_where_the_penalised_likelihood_is_flat():
    draw = np.random.default_rng(0)
    x = np.concatenate([np.ones((400, 1)), draw.normal(size=(400, 2))], axis=1)
    truth = draw.normal(size=(3, 3))
    classes = np.array([draw.choice(3, p=np.exp(row) / np.exp(row).sum()) for row in x @ truth])
    weights = torch.from_numpy(multinomial_logit(x, classes, 3)).requires_grad_()
    likelihood = torch.nn.functional.cross_entropy(
        torch.from_numpy(x) @ weights, torch.from_numpy(classes), reduction="sum"
    )
    ridge = 0.5 * PENALTY * ((weights[1:] ** 2).sum() + (weights[0] ** 2).sum() / 1_000)
    (likelihood + ridge).backward()
    assert weights.grad.abs().max() < 1e-7
    recovered = weights.detach().numpy() - weights.detach().numpy().mean(axis=1, keepdims=True)
    assert np.abs(recovered - (truth - truth.mean(axis=1, keepdims=True))).max() < 0.4


def test_one_class_alone_is_no_reason_to_fail():
    weights = multinomial_logit(np.ones((20, 1)), np.full(20, 2), 3)
    assert np.isfinite(weights).all()
    assert weights[0].argmax() == 2


def test_the_sign_names_its_class_and_is_as_sure_as_it_was_right(panel):
    sign = ImbalanceSign(1, 2)
    sign.fit(panel, np.array([[0, 1]]), TRAIN, TRAIN, lambda rows: rows)
    rows = torch.tensor([[0.3, 0.0], [-0.2, 0.0], [0.0, 0.0]], dtype=torch.float64)
    p = sign(torch.zeros(3, 1, 1), rows).softmax(-1)[:, 0, 1]
    assert p.argmax(-1).tolist() == [2, 0, 1]
    right = (1 + np.sign(panel.quotes[TRAIN, 0]) == panel.targets[TRAIN, 1]).mean()
    assert p.max(-1).values.tolist() == pytest.approx([max(right, 0.34)] * 3)


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_it_says_what_its_tokens_are(panel, pooling):
    made = model(panel, tokens="level", pooling=pooling)
    batch = BatchSource(made, panel).batch(np.array([60, 61]))
    assert made.token_levels() == ["bid 3", "bid 2", "bid 1", "ask 1", "ask 2", "ask 3"]
    assert made.token_bars().tolist() == [snapshot for snapshot in range(8) for _ in range(6)]
    shares, tokens = made.pooled_weights(batch), made.hidden_states(batch)[-1]
    assert torch.allclose(torch.einsum("bn,bnd->bd", shares, tokens), made._pool(tokens), atol=1e-5)
    assert model(panel).token_bars().tolist() == list(range(8))
    with pytest.raises(UserError, match="no level of it"):
        model(panel).token_levels()


def test_a_level_looks_at_levels_over_all_snapshots(panel):
    made = model(panel, tokens="level", n_layers=2)
    batch = BatchSource(made, panel).batch(np.array([60]))
    passed = record(made, batch)
    maps = level_maps(made, passed)
    assert [one.shape for one in maps] == [(6, 6), (6, 6)]
    assert all(torch.allclose(one.sum(1), torch.ones(6), atol=1e-5) for one in maps)
    weights = attention_weights(passed[1].layer, passed[1].x)[0].mean(0)
    expected = torch.stack([weights[-6:, place::6].sum(1) for place in range(6)], 1)
    assert torch.allclose(maps[1], expected, atol=1e-6)
