"""Where the target is a noisy function of one bar, what a model looked at is that bar; a constant looks nowhere."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from longtape.explain.attention import record, rollout, row_weights
from longtape.explain.effects import Effects
from longtape.features.build import FeaturesConfig, build
from longtape.models.encoder import EncoderConfig, EncoderForecaster
from longtape.training.batches import BatchSource
from longtape.training.config import TrainingConfig
from longtape.training.loop import Trainer
from tests.candles import candles
from tests.models.inputs import inputs_of

LAG, LOOKBACK, ROWS = 5, 16, 3_000
TRAIN, TEST = np.arange(100, 2_200), np.arange(2_300, 2_900)


@pytest.fixture(scope="module")
def panel():
    """The label is the first feature five bars back, and a little noise."""
    made = build([candles(ROWS)], FeaturesConfig(features=["log_return", "range"], targets=["return(1)"]))
    draw = np.random.default_rng(0)
    signal = draw.standard_normal(ROWS)
    values = made.values.copy()
    values[:, 0] = signal
    label = np.roll(signal, LAG) + 0.3 * draw.standard_normal(ROWS)
    return replace(made, values=values, targets=label[:, None])


@pytest.fixture(scope="module")
def model(panel, tmp_path_factory):
    torch.manual_seed(1)
    config = EncoderConfig(
        lookback=LOOKBACK, attention="flash", d_model=16, n_heads=1, n_layers=1, dropout=0.0, skip=False,
        positions="learned",
    )  # fmt: skip
    made = EncoderForecaster(config, inputs_of(panel, TRAIN))
    training = TrainingConfig(epochs=8, batch_size=32, learning_rate=1e-2, patience=8, weight_decay=0.0)
    checkpoint = tmp_path_factory.mktemp("meaning") / "checkpoint.safetensors"
    history = Trainer(made, panel, TRAIN, np.arange(2_210, 2_290), training, 0, checkpoint).fit()
    assert min(entry["validation"] for entry in history) < 0.3 * history[0]["validation"]
    return made


def test_attention_lies_on_the_bar_that_matters(model, panel):
    batch = BatchSource(model, panel).batch(TEST[:64])
    passed = record(model, batch)
    last = row_weights(passed[0]).mean((0, 1))
    assert int(last.argmax()) == LOOKBACK - 1 - LAG
    assert last[LOOKBACK - 1 - LAG] > 0.5
    reached = rollout(passed, model.pooled_weights(batch)).mean(0)
    assert int(reached[:-1].argmax()) == LOOKBACK - 1 - LAG  # the newest token keeps what it was
    assert torch.allclose(reached.sum(), torch.tensor(1.0))


def test_occlusion_there_hurts_most(model, panel):
    effects = Effects(model, panel, TEST)
    found = {one.name: one.mean for one in effects.occlusion(list(range(LOOKBACK + 1)))}
    assert max(found, key=found.get) == str(LAG)
    others = [value for name, value in found.items() if name != str(LAG)]
    assert found[str(LAG)] > 10 * max(others)
    coarse = {one.name: one.mean for one in effects.occlusion()}
    assert list(coarse) == ["0", "1", "2–3", "4–7", "8–15"]
    assert max(coarse, key=coarse.get) == "4–7"


def test_the_feature_that_matters_is_the_one_whose_loss_hurts(model, panel):
    by_name = {one.name: one.mean for one in Effects(model, panel, TEST).features(block=10)}
    assert set(by_name) == {"TEST log_return", "TEST range"}
    assert by_name["TEST log_return"] > 20 * abs(by_name["TEST range"])


def test_a_constant_model_shows_no_effect_anywhere(panel):
    config = EncoderConfig(
        lookback=LOOKBACK, d_model=16, n_heads=1, skip=False, attention_options={"block_size": 4}
    )
    constant = EncoderForecaster(config, inputs_of(panel, TRAIN))
    constant.fit(panel, TRAIN, TRAIN[:50])
    effects = Effects(constant, panel, TEST[:64])
    for one in (*effects.occlusion(), *effects.features(block=10), *effects.global_tokens()):
        assert (one.whole == one.without).all()
