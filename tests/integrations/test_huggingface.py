"""A transformers model with longtape's attention inside computes what it computed before."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

transformers = pytest.importorskip("transformers")

from longtape.integrations.huggingface import accelerate  # noqa: E402


def bigbird(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.BigBirdConfig(
        **{
            "vocab_size": 50,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 1024,
            "block_size": 8,
            "num_random_blocks": 3,
            "hidden_dropout_prob": 0.0,
            **options,
        }
    )
    return livelier(transformers.BigBirdModel(config).eval())


def longformer(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LongformerConfig(
        **{
            "vocab_size": 50,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 1024,
            "attention_window": [16, 32],
            "attention_probs_dropout_prob": 0.0,
            "hidden_dropout_prob": 0.0,
            **options,
        }
    )
    return livelier(transformers.LongformerModel(config).eval())


def livelier(model: torch.nn.Module) -> torch.nn.Module:
    """Scale the small initial projections, so that the attention is far from uniform."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("query", "key", "value")):
                parameter.mul_(20.0)
    return model


def batch(n: int, pads: tuple[int, int] = (0, 37)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 50, (2, n), generator=generator)
    mask = torch.ones(2, n, dtype=torch.long)
    for row, pad in enumerate(pads):
        mask[row, n - pad :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def assert_same(model: torch.nn.Module, fast: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True)
        actual = fast(**inputs, output_hidden_states=True)
    assert len(actual.hidden_states) == len(expected.hidden_states) > 1
    pairs = zip(actual.hidden_states, expected.hidden_states, strict=True)
    assert all((a - e).abs().max() <= 1e-4 for a, e in pairs)
    assert (actual.last_hidden_state - expected.last_hidden_state).abs().max() <= 1e-4


@pytest.mark.parametrize("n", [96, 121, 400])
@pytest.mark.parametrize("pads", [(0, 0), (0, 37), (61, 8)])
def test_bigbird_in_eval_where_the_library_repeats_block_0(n, pads) -> None:
    model = bigbird()
    assert_same(model, accelerate(copy.deepcopy(model)), batch(n, pads))


@pytest.mark.parametrize("n", [121, 1024])
def test_bigbird_in_training_where_every_head_draws_its_own_blocks(n) -> None:
    model = bigbird().train()
    fast = accelerate(copy.deepcopy(model))
    assert_same(model, fast, batch(n))


def test_bigbird_gradients_in_training() -> None:
    model = bigbird().train()
    fast, inputs = accelerate(copy.deepcopy(model)), batch(121)
    for each in (model, fast):
        each(**inputs).last_hidden_state.square().sum().backward()
    slow = dict(model.named_parameters())
    for name, parameter in fast.named_parameters():
        if parameter.grad is None:
            assert slow[name].grad is None
            continue
        limit = 1e-3 * max(1.0, slow[name].grad.abs().max().item())
        assert (parameter.grad - slow[name].grad).abs().max() <= limit, name


def test_a_short_input_turns_bigbird_full_as_the_library_does() -> None:
    model = bigbird()
    assert_same(model, accelerate(copy.deepcopy(model)), batch(40, (0, 7)))


@pytest.mark.parametrize("n", [32, 100, 400])
@pytest.mark.parametrize("marks", [None, "first", "some"])
@pytest.mark.parametrize("pads", [(0, 0), (0, 9)])
def test_longformer(n, marks, pads) -> None:
    model, inputs = longformer(), batch(n, pads)
    if marks is not None:
        inputs["global_attention_mask"] = torch.zeros(2, n, dtype=torch.long)
        inputs["global_attention_mask"][:, 0] = 1
    if marks == "some":
        inputs["global_attention_mask"][0, [5, 11, 20]] = 1
    assert_same(model, accelerate(copy.deepcopy(model)), inputs)


def test_longformer_gradients() -> None:
    model = longformer().train()
    fast, inputs = accelerate(copy.deepcopy(model)), batch(100, (0, 0))
    inputs["global_attention_mask"] = (torch.arange(100) < 3).long().expand(2, -1)
    for each in (model, fast):
        each(**inputs).last_hidden_state.square().sum().backward()
    slow = dict(model.named_parameters())
    for name, parameter in fast.named_parameters():
        if parameter.grad is not None:
            limit = 1e-3 * max(1.0, slow[name].grad.abs().max().item())
            assert (parameter.grad - slow[name].grad).abs().max() <= limit, name


@pytest.mark.parametrize("make", [bigbird, longformer])
def test_weights_keep_their_names_and_values(make) -> None:
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert accelerate(model) is model
    assert accelerate(model) is model  # a second call finds nothing left to do and harms nothing
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any("transformers" in type(m).__module__ for m in model.modules() if hasattr(m, "query"))


@pytest.mark.parametrize("make", [bigbird, longformer])
def test_a_head_on_top_works_too(make) -> None:
    base = make()
    name = "BigBirdForSequenceClassification" if make is bigbird else "LongformerForSequenceClassification"
    torch.manual_seed(2)
    model = livelier(getattr(transformers, name)(base.config).eval())
    fast, inputs = accelerate(copy.deepcopy(model)), batch(121)
    with torch.no_grad():
        assert (fast(**inputs).logits - model(**inputs).logits).abs().max() <= 1e-4


@pytest.mark.parametrize("make", [bigbird, longformer])
def test_attention_maps_are_refused_not_left_out(make) -> None:
    with pytest.raises(ValueError, match="attention maps"):
        accelerate(make())(**batch(121), output_attentions=True)


def test_models_without_sparse_attention_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to accelerate"):
        accelerate(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="original_full"):
        accelerate(bigbird(attention_type="original_full"))


def test_longformer_drops_attention_weights_in_training_only() -> None:
    model = longformer(attention_probs_dropout_prob=0.5)
    fast, inputs = accelerate(copy.deepcopy(model)), batch(100)
    inputs["global_attention_mask"] = (torch.arange(100) < 2).long().expand(2, -1)
    assert_same(model, fast, inputs)
    first, second = (fast.train()(**inputs).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)


def test_importing_the_bridge_imports_no_transformers() -> None:
    code = "import sys, longtape.integrations.huggingface; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
