"""Where a step runs is the matter of what surrounds it: batches follow the device, models never move them."""

import numpy as np
import pytest
import torch

from longtape.core.errors import UserError
from longtape.features.build import FeaturesConfig, build
from longtape.models.base import Model, ModelConfig
from longtape.models.prediction import Point, Prediction
from longtape.training.batches import BatchSource
from longtape.training.config import TrainingConfig
from longtape.training.execution import Execution, is_slow
from tests.candles import candles
from tests.models.inputs import inputs_of
from tests.training.trainers import make_panel, trainer


class Spy(Model):
    """Forecasts zero and remembers on which device its batches were."""

    def forward(self, batch):
        self.seen = {
            name: getattr(batch, name).device.type for name in ("x", "rows", "marks", "y", "present")
        }
        zero = torch.zeros(len(batch), 1, 1, device=batch.x.device)
        return Prediction((Point(zero, torch.ones(1, 1, device=batch.x.device)),), self.kind_columns)


def test_every_tensor_of_a_batch_goes_to_the_device_before_the_model():
    panel = build([candles(200)], FeaturesConfig(features=["log_return"], targets=["return(2)"]))
    model = Spy(ModelConfig(kind="zero", lookback=8), inputs_of(panel, np.arange(50, 150)))
    model.to("meta")
    batch = BatchSource(model, panel).batch(np.arange(100, 104))
    execution = Execution(torch.device("meta"))
    loss = execution.loss(execution.prepare(model), batch)
    assert set(model.seen.values()) == {"meta"}
    assert loss.device.type == "meta"
    assert batch.x.device.type == "cpu"


def test_a_batch_in_parts_is_the_batch():
    panel = build([candles(200)], FeaturesConfig(features=["log_return"], targets=["return(2)"]))
    model = Spy(ModelConfig(kind="zero", lookback=8), inputs_of(panel, np.arange(50, 150)))
    batch = BatchSource(model, panel).batch(np.arange(100, 110))
    parts = list(batch.split(4))
    assert [len(part) for part in parts] == [4, 4, 2]
    for name in ("x", "y", "known_at", "y_present"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert torch.equal(batch.by_asset[:, :, 0], batch.x)
    assert batch.shared.shape[2] == 0


@pytest.mark.parametrize(
    ("precision", "flags", "slow"),
    [
        ("float32", {"avx2"}, False),
        ("bfloat16", {"avx2", "avx512f"}, True),
        ("bfloat16", {"avx512f", "avx512_bf16"}, False),
        ("bfloat16", {"asimd", "bf16"}, False),
        ("float16", {"avx512f", "avx512_bf16"}, True),
        ("bfloat16", set(), False),  # not known
    ],
)
def test_a_precision_that_this_cpu_has_no_instructions_for_is_slow(precision, flags, slow):
    assert is_slow(precision, flags) == slow


def test_a_slow_precision_and_the_device_of_auto_are_said(monkeypatch, capsys):
    monkeypatch.setattr("longtape.training.execution.cpu_flags", lambda: {"avx2"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = TrainingConfig(precision="bfloat16", device="auto")
    Execution.of(config).announce(config)
    said = capsys.readouterr().err
    assert "training on the CPU" in said
    assert "no instructions for bfloat16" in said


def test_compilation_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setattr("longtape.training.execution._cpu_compiler", lambda: None)
    with pytest.raises(UserError, match="C\\+\\+ compiler"):
        Execution.of(TrainingConfig(compile=True))


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"longtape\[tensorboard\]"):
        Execution.of(TrainingConfig(tensorboard=True))


@pytest.fixture(scope="module")
def float32(tmp_path_factory):
    made = trainer(make_panel(), tmp_path_factory.mktemp("float32"), "flash", {"dropout": 0.0}, epochs=1)
    return made.fit()[-1]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"precision": "bfloat16"}, 0.02),
        ({"precision": "float16"}, 0.005),
        pytest.param({"compile": True}, 1e-5, marks=pytest.mark.soak),  # a minute of compilation
    ],
)
def test_another_execution_trains_to_nearly_the_same_losses(tmp_path, float32, options, tolerance):
    """Products keep 8 or 11 bits; compiled code takes sums in another order."""
    if options.get("compile") and not __import__("shutil").which("g++"):
        pytest.skip("there is no C++ compiler here")
    made = trainer(make_panel(), tmp_path, "flash", {"dropout": 0.0}, epochs=1, **options)
    found = made.fit()[-1]
    for name in ("train", "validation"):
        assert found[name] == pytest.approx(float32[name], rel=tolerance)
    assert all(p.dtype == torch.float32 for p in made.model.parameters())


def test_a_compiled_step_is_captured_whole(tmp_path, float32, monkeypatch):
    """Captured and differentiated ahead, then run by PyTorch's own operators: without the C++ compiler's minute."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled(self, backend="aot_eager"))
    made = trainer(make_panel(), tmp_path, "flash", {"dropout": 0.0}, epochs=1, compile=True)
    assert made.fit()[-1]["validation"] == pytest.approx(float32["validation"], rel=1e-5)
