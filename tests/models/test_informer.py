"""Informer against a small reference of its own, in float64: loops and dense maths, from the weights alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from longtape.attention import MECHANISMS
from longtape.core.errors import UserError
from longtape.experiment import parse_experiment
from longtape.features.build import FeaturesConfig, build
from longtape.models.informer import Distil, Informer, InformerConfig
from longtape.training.batches import BatchSource
from tests.candles import candles
from tests.models.inputs import inputs_of

TRAIN, VALID = np.arange(100, 300), np.arange(310, 400)


@pytest.fixture(scope="module")
def panel():
    config = FeaturesConfig(
        features=["log_return", "volatility(10)"], targets=["path(5)", "volatility(3)", "return(4)"]
    )
    return build([candles(500, 1, "AAA"), candles(500, 2, "BBB")], config)


def make(panel, **options):
    torch.manual_seed(0)
    given = {"lookback": 25, "d_model": 8, "n_heads": 2, "n_layers": 2, "label_len": 7, **options}
    model = Informer(InformerConfig(**given), inputs_of(panel, TRAIN)).eval()
    model.fit(panel, TRAIN, VALID)
    torch.manual_seed(1)
    for head in model.heads.values():
        torch.nn.init.normal_(head.linear.weight)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def batch_of(model, panel, rows=(410, 411, 450)):
    return BatchSource(model, panel).batch(np.asarray(rows))


class Reference:
    """What the paper says, one token at a time, with the weights of a model."""

    def __init__(self, model):
        self.w = {name: value.double() for name, value in model.state_dict().items()}
        self.model, self.config = model, model.config
        self.h = model.config.n_heads

    def linear(self, x, name):
        bias = self.w.get(f"{name}.bias")
        return x @ self.w[f"{name}.weight"].T + (0 if bias is None else bias)

    def convolve(self, x, name):
        """Three neighbours on a circle."""
        weight, bias, n = self.w[f"{name}.weight"], self.w.get(f"{name}.bias"), x.shape[1]
        rows = [
            sum(x[:, (t + o - 1) % n] @ weight[:, :, o].T for o in range(3)) + (0 if bias is None else bias)
            for t in range(n)
        ]
        return torch.stack(rows, 1)

    def embed(self, x, calendar, name):
        n, d = x.shape[1], self.config.d_model
        position = torch.zeros(n, d, dtype=torch.float64)
        for t in range(n):
            for i in range(0, d, 2):
                position[t, i] = np.sin(t / 10_000 ** (i / d))
                position[t, i + 1] = np.cos(t / 10_000 ** (i / d))
        return (
            self.convolve(x, f"{name}.values") + position.float() + self.linear(calendar, f"{name}.calendar")
        )

    def attend(self, x, context, name, layer, masked=False):
        """Softmax where the layer says that a query is active, else the mean of what it may see."""
        b, n, d = x.shape
        m, width = context.shape[1], d // self.h
        q, k, v = (
            self.linear(source, f"{name}.{p}").view(b, -1, self.h, width).transpose(1, 2)
            for p, source in (("q_proj", x), ("k_proj", context), ("v_proj", context))
        )
        active = layer.active(q, k) if hasattr(layer, "active") else torch.ones(b, self.h, n, dtype=bool)
        out = torch.zeros(b, n, d, dtype=torch.float64)
        for sample in range(b):
            for head in range(self.h):
                for t in range(n):
                    seen = t + 1 if masked else m
                    scores = k[sample, head, :seen] @ q[sample, head, t] / np.sqrt(width)
                    uniform = torch.full((seen,), 1 / seen, dtype=torch.float64)
                    weights = scores.softmax(0) if active[sample, head, t] else uniform
                    out[sample, t, head * width : (head + 1) * width] = weights @ v[sample, head, :seen]
        return self.linear(out, f"{name}.out_proj")

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def feed(self, x, name):
        return self.linear(F.gelu(self.linear(x, f"{name}.0")), f"{name}.2")

    def distil(self, x, name):
        y = self.convolve(x, f"{name}.convolution")
        mean, variance = (self.w[f"{name}.norm.running_{part}"] for part in ("mean", "var"))
        y = (y - mean) / (variance + 1e-5).sqrt() * self.w[f"{name}.norm.weight"] + self.w[
            f"{name}.norm.bias"
        ]
        y = torch.where(y > 0, y, y.exp() - 1)
        n = y.shape[1]
        pooled = [y[:, max(0, 2 * t - 1) : 2 * t + 2].amax(1) for t in range((n + 1) // 2)]
        return torch.stack(pooled, 1)

    def encode(self, tokens, number):
        encoder, name = self.model.encoders[number], f"encoders.{number}"
        x = tokens[:, -int(np.ceil(self.config.lookback / 2**number)) :]
        for i in range(self.config.n_layers - number):
            if i and self.config.distil:
                x = self.distil(x, f"{name}.distils.{i - 1}")
            attended = self.attend(x, x, f"{name}.layers.{i}.attention", encoder.layers[i].attention)
            x = self.norm(x + attended, f"{name}.layers.{i}.norm1")
            x = self.norm(x + self.feed(x, f"{name}.layers.{i}.feed_forward"), f"{name}.layers.{i}.norm2")
        return self.norm(x, f"{name}.norm")

    def steps(self, batch):
        scaled = self.model.scaling(batch.x).double()
        tokens = self.embed(scaled, batch.calendar.double(), "encoder_embedding")
        context = torch.cat([self.encode(tokens, r) for r in range(self.config.replicas + 1)], 1)
        known, n_steps = self.config.known_steps, batch.future.shape[1]
        zeros = torch.zeros(len(scaled), n_steps, scaled.shape[2], dtype=torch.float64)
        calendar = torch.cat([batch.calendar[:, -known:], batch.future], 1).double()
        x = self.embed(torch.cat([scaled[:, -known:], zeros], 1), calendar, "decoder_embedding")
        for i, layer in enumerate(self.model.decoder):
            name = f"decoder.{i}"
            x = self.norm(
                x + self.attend(x, x, f"{name}.attention", layer.attention, masked=True), f"{name}.norms.0"
            )
            crossed = self.attend(x, context, f"{name}.cross_attention", layer.cross_attention)
            x = self.norm(x + crossed, f"{name}.norms.1")
            x = self.norm(x + self.feed(x, f"{name}.feed_forward"), f"{name}.norms.2")
        return self.norm(x, "norm")[:, known:]


@pytest.mark.parametrize(
    "options",
    [
        {"attention_options": {"factor": 1}},
        {"attention_options": {"factor": 50}, "n_layers": 3, "replicas": 2},
        {"attention": "full", "distil": False, "n_decoder_layers": 2},
    ],
    ids=["probsparse", "replicas", "full"],
)
@torch.no_grad()
def test_the_model_is_the_reference_in_float64(panel, options):
    model = make(panel, **options).double()
    batch = batch_of(model, panel)
    scaled = model.scaling(batch.x).double()
    wide = replace(batch, calendar=batch.calendar.double(), future=batch.future.double())
    found = model.decode(scaled, wide, model._context(scaled, wide))
    expected = Reference(model).steps(batch)
    assert found.shape == (3, 5, 8)
    assert torch.allclose(found, expected, atol=1e-10)


@torch.no_grad()
def test_every_horizon_is_read_from_its_own_step(panel):
    """path(5), volatility(3) and return(4) of two assets: raw outputs from the decoder's tokens, head by head."""
    model = make(panel)
    batch = batch_of(model, panel)
    scaled = model.scaling(batch.x)
    steps = model.decode(scaled, batch, model._context(scaled, batch))
    made, starts = model(batch), dict(model.starts(scaled, batch.rows))
    for k, target in enumerate(panel.target_columns):
        head = model.heads[target.kind]
        names = sorted({t.name for t in panel.target_columns if t.kind == target.kind})
        asset, group = panel.assets.index(target.asset), names.index(target.name)
        row = asset * len(names) + group
        raw = steps[:, target.horizon - 1] @ head.linear.weight[row] + head.linear.bias[row]
        n = int(np.flatnonzero(model.inputs.kinds[target.kind][asset] == k)[0])
        start = starts[target.kind][:, asset, n]
        expected = (
            (start + raw).mul(0.5).exp()
            if target.kind == "volatility"
            else start + head.scale[asset, n] * raw
        )
        assert torch.allclose(made.mean()[:, k], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 25, 26])
def test_distilling_halves_and_loses_nothing(n):
    """⌈N/2⌉ tokens, and every token reaches some of them."""
    torch.manual_seed(0)
    layer, x = Distil(4).eval(), torch.randn(1, n, 4, requires_grad=True)
    out = layer(x)
    assert out.shape == (1, -(-n // 2), 4)
    reached = torch.zeros(n, dtype=torch.bool)
    for t in range(out.shape[1]):
        (gradient,) = torch.autograd.grad(out[0, t].sum(), x, retain_graph=True)
        reached |= gradient[0].abs().sum(-1) > 0
    assert reached.all()


@torch.no_grad()
def test_encoder_and_replicas_end_in_one_length(panel):
    model = make(panel, n_layers=3, replicas=2)
    batch = batch_of(model, panel)
    tokens = model.encoder_embedding(model.scaling(batch.x), batch.calendar)
    assert [[s.shape[1] for s in encoder(tokens)] for encoder in model.encoders] == [
        [25, 13, 7],
        [13, 7],
        [7],
    ]


@torch.no_grad()
def test_an_untrained_informer_is_the_closed_form_baseline(panel):
    torch.manual_seed(0)
    model = Informer(InformerConfig(lookback=25, d_model=8, n_heads=2), inputs_of(panel, TRAIN)).eval()
    model.fit(panel, TRAIN, VALID)
    batch = batch_of(model, panel)
    starts = dict(model.starts(model.scaling(batch.x), batch.rows))
    path = [k for k, t in enumerate(panel.target_columns) if t.kind == "path"]
    assert torch.allclose(model(batch).mean()[:, path], starts["path"].flatten(1), atol=1e-7)


@torch.no_grad()
def test_the_calendar_of_bars_to_come_is_read_and_no_bar_itself(panel):
    model = make(panel)
    batch = batch_of(model, panel)
    other = model(replace(batch, future=batch.future.flip(1))).mean()
    assert not torch.allclose(other, model(batch).mean())
    plain = make(panel, calendar=False)
    assert plain.future_steps == 0
    assert torch.isfinite(plain(batch_of(plain, panel)).mean()).all()


@pytest.mark.parametrize("name", MECHANISMS)
@torch.no_grad()
def test_any_mechanism_encodes_and_those_that_can_mask_decode(panel, name):
    options = {"linformer": {"k": 4}, "bigbird": {"block_size": 4}, "local": {"window_size": 5}}
    options["longformer"] = {"window_size": 5}
    given = {"attention": name, "attention_options": options.get(name, {}), "n_layers": 3}
    if name in ("linformer", "reformer"):
        with pytest.raises(ValueError, match="the decoder masks later steps"):
            InformerConfig(**given)
        given["decoder_attention"] = "flash"
    model = make(panel, **given)
    assert torch.isfinite(model(batch_of(model, panel)).mean()).all()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"replicas": 2}, "2 layers allow 1"),
        ({"replicas": 1, "distil": False}, "it is off"),
        ({"label_len": 200}, "more than the window's 96"),
        ({"attention": "flash", "attention_options": {"causal": True}}, "masks by itself"),
        (
            {"attention": "linformer", "decoder_attention": "flash", "attention_options": {"sharing": "layerwise"}},
            "no projection to share",
        ),
        ({"decoder_attention": "flash", "decoder_options": {"factor": 3}}, "no option 'factor'"),
        ({"pooling": "mean"}, "unknown key 'pooling'"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_anything_is_read(model, said):
    document = {
        "data": {"source": "file", "path": "x.parquet", "symbols": ["X"], "interval": "1h"},
        "features": ["log_return"], "targets": ["return(3)"], "model": {"kind": "informer", **model},
    }  # fmt: skip
    with pytest.raises(UserError) as error:
        parse_experiment(document, "x.yaml")
    assert said in str(error.value)


def test_marks_are_refused():
    document = {
        "data": {"source": "file", "path": "x.parquet", "symbols": ["X"], "interval": "1h"},
        "features": ["log_return"], "targets": ["return(3)"], "marks": {"kinds": ["day"]},
        "model": {"kind": "informer", "attention": "bigbird"},
    }  # fmt: skip
    with pytest.raises(UserError, match="global tokens"):
        parse_experiment(document, "x.yaml")
