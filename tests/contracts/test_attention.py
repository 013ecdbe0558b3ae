"""What every attention mechanism owes its user, over the whole registry."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.utils.checkpoint

from longtape.attention import MECHANISMS, attention_weights, build_attention, mechanism_class
from tests.contracts.attention_cases import (
    CASES,
    CAUSAL,
    LENGTHS,
    MAIN,
    Case,
    capable,
    gap,
    padding,
    tokens,
    values_and_gradients,
)

every_case = pytest.mark.parametrize("case", CASES, ids=str)
one_of_each = pytest.mark.parametrize("case", MAIN, ids=str)
NO_ATTENTION_DROPOUT = {"performer", "reformer"}  # their attention weights never exist as such

each_name = pytest.mark.parametrize("name", list(MECHANISMS))


def assert_equals_reference(layer, x, tolerance_values, tolerance_gradients, **more):
    fast = values_and_gradients(layer, layer, x, **more)
    slow = values_and_gradients(layer.reference, layer, x, **more)
    names = ["output", "x", *(name for name, _ in layer.named_parameters())]
    for name, actual, expected in zip(names, fast, slow, strict=True):
        limit = tolerance_values if name == "output" else tolerance_gradients
        assert gap(actual, expected) <= limit, f"{name}: {gap(actual, expected):.2e} > {limit:.0e}"


# --- the equation ---


@every_case
@pytest.mark.parametrize("n", LENGTHS)
def test_values_and_gradients_equal_the_reference_in_float64(case: Case, n: int) -> None:
    n = max(n, case.min_length)
    assert_equals_reference(case.build(n).double(), tokens(n), 1e-10, 1e-8)


@every_case
def test_values_and_gradients_equal_the_reference_with_padding(case: Case) -> None:
    assert_equals_reference(case.build(100).double(), tokens(100), 1e-10, 1e-8, visible=padding(100))


@one_of_each
def test_a_thousand_tokens_one_head_batch_one(case: Case) -> None:
    layer = case.build(1000, n_heads=1).double()
    assert_equals_reference(layer, tokens(1000, batch=1), 1e-10, 1e-8)


@one_of_each
def test_4096_tokens(case: Case) -> None:
    layer = case.build(4096, n_heads=1).double()
    x = tokens(4096, batch=1)
    with torch.no_grad():
        assert gap(layer(x), layer.reference(x)) <= 1e-10


@every_case
def test_float32_within_1e5_of_the_largest_value(case: Case) -> None:
    layer, x = case.build(130), tokens(130, dtype=torch.float32)
    with torch.no_grad():
        expected = layer.reference(x)
        assert (layer(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@one_of_each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_low_precision_errs_no_more_than_twice_the_reference_in_it(case: Case, dtype: torch.dtype) -> None:
    layer, x = case.build(200).to(dtype), tokens(200, dtype=dtype)
    exact = copy.deepcopy(layer).double()
    with torch.no_grad():
        truth = exact.reference(x.double())
        fast, slow = layer(x), layer.reference(x)
    assert fast.dtype == dtype
    rounding = torch.finfo(dtype).eps * truth.abs().max()
    for norm in (torch.Tensor.amax, lambda t: t.square().mean().sqrt()):
        allowed = 2 * norm((slow.double() - truth).abs()) + rounding
        assert norm((fast.double() - truth).abs()) <= allowed


@one_of_each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_low_precision_gradients_are_finite_and_near(case: Case, dtype: torch.dtype) -> None:
    """Each gradient errs no more than twice what those of the definition do in the same precision."""
    layer, x = case.build(96).to(dtype), tokens(96, dtype=dtype)
    exact = copy.deepcopy(layer).double()
    truth = values_and_gradients(exact.reference, exact, x.double())
    fast, slow = values_and_gradients(layer, layer, x), values_and_gradients(layer.reference, layer, x)
    rounding = torch.finfo(dtype).eps * max(
        part.abs().max() for part in truth
    )  # the gradient of a key's bias is 0
    for mine, plain, right in zip(fast, slow, truth, strict=True):
        assert mine.isfinite().all()
        error, allowed = ((part.double() - right).square().mean().sqrt() for part in (mine, plain))
        assert error <= 2 * allowed + rounding


@every_case
def test_heads_of_odd_width(case: Case) -> None:
    n = max(70, case.min_length)
    for d_model, n_heads in ((2, 2), (6, 2), (10, 2)):
        layer = case.build(n, d_model=d_model, n_heads=n_heads).double()
        assert_equals_reference(layer, tokens(n, d_model=d_model), 1e-10, 1e-8)


@one_of_each
def test_autocast_stays_near_float32(case: Case) -> None:
    layer, x = case.build(96), tokens(96, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = values_and_gradients(layer, layer, x)
    assert all(part.isfinite().all() for part in parts)
    if case.mechanism not in ("reformer", "probsparse"):  # there rounding changes who looks at whom
        assert gap(parts[0], layer(x)) <= 0.05


@one_of_each
def test_gradient_checkpointing_gives_the_same_gradients(case: Case) -> None:
    layer, x = case.build(80).train(), tokens(80, dtype=torch.float32)

    def kept(y: torch.Tensor) -> torch.Tensor:
        return torch.utils.checkpoint.checkpoint(layer, y, use_reentrant=False)

    plain, again = values_and_gradients(layer, layer, x), values_and_gradients(kept, layer, x)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@one_of_each
def test_large_scores_stay_finite(case: Case) -> None:
    layer, x = case.build(70), 10 * tokens(70, dtype=torch.float32)
    assert all(part.isfinite().all() for part in values_and_gradients(layer, layer, x))


@pytest.mark.parametrize("case", [case for case in CASES if case.full], ids=str)
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65])
def test_a_budget_of_all_tokens_is_full_attention(case: Case, n: int) -> None:
    layer = case.build(n, **case.full(n)).double()
    full = Case("full").build(n).double()
    full.load_state_dict({name: layer.state_dict()[name] for name in full.state_dict()})
    x, visible = tokens(n), padding(n)
    assert gap(layer(x), full(x)) <= 1e-10
    assert gap(layer(x, visible=visible), full(x, visible=visible)) <= 1e-10


# --- what is hidden stays hidden ---


@every_case
@pytest.mark.parametrize("junk", [7.0, float("nan"), float("inf")])
def test_padded_content_never_matters(case: Case, junk: float) -> None:
    layer, x, visible = case.build(100), tokens(100, dtype=torch.float32), padding(100)
    other = x.masked_fill(~visible[..., None], junk)
    with torch.no_grad():
        before, after = layer(x, visible=visible), layer(other, visible=visible)
        slow = layer.reference(other, visible=visible)
    assert torch.equal(before, after)
    assert gap(after, slow) <= 1e-5


@every_case
def test_padded_rows_are_zero_before_the_output_projection(case: Case) -> None:
    layer, visible = case.build(65), padding(65)
    with torch.no_grad():
        y = layer(tokens(65, dtype=torch.float32), visible=visible)
    padded = y[~visible]
    assert torch.equal(padded, layer.out_proj.bias.expand_as(padded))


@every_case
def test_a_sample_of_nothing_but_padding_gives_no_nan(case: Case) -> None:
    layer, visible = case.build(50), padding(50)
    visible[1] = False
    parts = values_and_gradients(layer, layer, tokens(50, dtype=torch.float32), visible=visible)
    assert all(part.isfinite().all() for part in parts)


@every_case
def test_all_visible_is_the_same_as_no_mask(case: Case) -> None:
    layer, x = case.build(66).double(), tokens(66)
    assert gap(layer(x, visible=torch.ones(2, 66, dtype=torch.bool)), layer(x)) <= 1e-10


@pytest.mark.parametrize("name", ["full", "flash", "local", "longformer", "linformer", "performer"])
def test_padding_at_the_end_is_the_same_as_a_shorter_sequence(name: str) -> None:
    case = next(case for case in MAIN if case.mechanism == name)
    layer, x = case.build(80).double(), tokens(80)
    visible = (torch.arange(80) < 61).expand(2, 80)
    assert gap(layer(x, visible=visible)[:, :61], layer(x[:, :61])) <= 1e-10


@every_case
def test_samples_of_a_batch_do_not_touch_each_other(case: Case) -> None:
    layer, x, visible = case.build(90).double(), tokens(90), padding(90)
    x = torch.stack([x[0], 30 * x[1]])
    together = layer(x, visible=visible)
    for b in range(2):
        assert gap(layer(x[b : b + 1], visible=visible[b : b + 1]), together[b : b + 1]) <= 1e-10


@pytest.mark.parametrize("case", CAUSAL, ids=str)
@pytest.mark.parametrize("changed", [1, 40, 99])
def test_a_later_token_never_changes_an_earlier_output(case: Case, changed: int) -> None:
    layer, x = case.build(100), tokens(100, dtype=torch.float32)
    other = x.clone()
    other[:, changed:] = 50 * tokens(100, seed=9, dtype=torch.float32)[:, changed:]
    with torch.no_grad():
        before, after = layer(x), layer(other)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before[:, changed:], after[:, changed:])


@each_name
def test_causal_is_covered_or_refused_with_a_reason(name: str) -> None:
    if capable(name).causal:
        assert any(case.mechanism == name for case in CAUSAL)
        return
    with pytest.raises(ValueError, match=r"causal: .{20,}"):
        build_attention(name, d_model=16, n_heads=2, seq_len=32, causal=True)


# --- the same call gives the same answer ---


@every_case
def test_eval_twice_gives_the_same_bits_and_moves_no_generator(case: Case) -> None:
    layer, x = case.build(100), tokens(100, dtype=torch.float32)
    state = torch.get_rng_state()
    first = values_and_gradients(layer, layer, x)
    second = values_and_gradients(layer, layer, x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(state, torch.get_rng_state())


@one_of_each
def test_training_without_dropout_moves_no_global_generator(case: Case) -> None:
    layer, x = case.build(100).train(), tokens(100, dtype=torch.float32)
    state = torch.get_rng_state()
    values_and_gradients(layer, layer, x)
    assert torch.equal(state, torch.get_rng_state())


@every_case
def test_a_state_dict_carries_the_layer_to_the_bit(case: Case) -> None:
    x = tokens(100, dtype=torch.float32)
    one, other = case.build(100, seed=3), case.build(100, seed=4)
    other.load_state_dict(one.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(one(x), other(x))
        assert torch.equal(one(x), copy.deepcopy(one)(x))


@one_of_each
def test_the_same_seed_gives_the_same_layer_after_a_call_of_another_length(case: Case) -> None:
    x = tokens(100, dtype=torch.float32)
    fresh, used = case.build(100), case.build(100)
    with torch.no_grad():
        used(x[:, :37])
        used(x, visible=padding(100))
        assert torch.equal(fresh(x), used(x))


@every_case
def test_memory_poisoned_with_nan_changes_nothing(case: Case) -> None:
    x, visible = tokens(100, dtype=torch.float32), padding(100)
    layer = case.build(100)
    clean = values_and_gradients(layer, layer, x, visible=visible)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # every torch.empty is then filled with NaN
    try:
        assert torch.empty(3).isnan().all()
        poisoned = values_and_gradients(layer, layer, x, visible=visible)
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(gap(a, b) <= 1e-6 for a, b in zip(poisoned, clean, strict=True))


@one_of_each
def test_views_and_strides_do_not_matter(case: Case) -> None:
    layer, x = case.build(64).double(), tokens(64)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert gap(layer(strided), layer(x)) <= 1e-12
    assert gap(layer(tokens(64, batch=1).expand(3, 64, 16))[2], layer(tokens(64, batch=1))[0]) <= 1e-10


# --- options ---


@each_name
def test_an_unknown_option_is_refused_with_the_nearest_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} has no option 'dropuot'; did you mean 'dropout'"):
        build_attention(name, d_model=16, n_heads=2, dropuot=0.1)


def test_an_unknown_mechanism_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'bigbird'"):
        build_attention("bigbrid", d_model=16, n_heads=2)


@pytest.mark.parametrize("name", ["local", "longformer", "bigbird"])
def test_even_windows_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="odd"):
        build_attention(name, d_model=16, n_heads=2, window_size=4)


@each_name
def test_no_placement_is_needed_without_global_tokens(name: str) -> None:
    options = {field.name for field in dataclasses.fields(mechanism_class(name).Config)}
    if "global_tokens" not in options:
        pytest.skip("has no global tokens")
    x = tokens(40)
    outputs = [
        Case(name, options={"n_global": 0, "global_tokens": where}).build(40).double()(x)
        for where in ("first", "last", "both", "random", "spaced")
    ]
    assert all(torch.equal(outputs[0], other) for other in outputs)


@each_name
@pytest.mark.parametrize(
    "wrong", [{"d_model": 15}, {"n_heads": 0}, {"dropout": 1.0}, {"attention_dropout": -0.1}, {"seq_len": 0}]
)
def test_values_out_of_range_are_refused(name: str, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build_attention(name, **{"d_model": 16, "n_heads": 2, "seq_len": 32, **wrong})


@each_name
def test_wrong_shapes_are_refused(name: str) -> None:
    layer = next(case for case in MAIN if case.mechanism == name).build(32)
    x = tokens(32, dtype=torch.float32)
    with pytest.raises(ValueError, match="x must be"):
        layer(x[..., :8])
    with pytest.raises(ValueError, match="visible must be"):
        layer(x, visible=torch.ones(2, 31, dtype=torch.bool))
    with pytest.raises((ValueError, TypeError), match=r"nonsense"):
        layer(x, nonsense=1)


@one_of_each
@pytest.mark.parametrize("option", ["dropout", "attention_dropout"])
def test_dropout_acts_in_training_only_or_is_refused(case: Case, option: str) -> None:
    x = tokens(64, dtype=torch.float32)
    if case.mechanism in NO_ATTENTION_DROPOUT and option == "attention_dropout":
        with pytest.raises(ValueError, match=option):
            case.build(64, **{option: 0.5})
        return
    layer = case.build(64, **{option: 0.5})
    with torch.no_grad():
        assert torch.equal(layer(x), case.build(64)(x))
        torch.manual_seed(0)
        first, second = layer.train()(x), layer(x)
    assert not torch.equal(first, second)


@one_of_each
def test_projections_have_their_documented_names_and_shapes(case: Case) -> None:
    layer = case.build(64)
    names = ["q_proj", "v_proj", "out_proj"] + ["k_proj"] * (case.mechanism != "reformer")
    for name in names:
        projection = getattr(layer, name)
        assert projection.weight.shape == (16, 16)
        assert projection.bias.shape == (16,)
    assert hasattr(layer, "k_proj") == (case.mechanism != "reformer")


# --- weights, cross-attention, growth ---


@every_case
def test_weights_sum_to_one_explain_the_output_and_change_nothing(case: Case) -> None:
    if not capable(case.mechanism).weights:
        pytest.skip("declares no weights")
    layer, x, visible = case.build(70).double(), tokens(70), padding(70)
    before = layer(x, visible=visible)
    weights = attention_weights(layer, x, visible=visible)
    assert torch.equal(before, layer(x, visible=visible))
    sums = weights.sum(-1).transpose(1, 2)[visible]
    assert gap(sums, torch.ones_like(sums)) <= 1e-9
    some = attention_weights(layer, x, rows=[69, 3], visible=visible)
    assert gap(some, weights[:, :, [69, 3]]) <= 1e-12
    if case.mechanism not in ("linformer", "longformer") and case.form != "extra":
        values = layer.project(x)[2].masked_fill(~visible[:, None, :, None], 0.0)
        mixed = (weights @ values).transpose(1, 2).flatten(2).masked_fill(~visible[..., None], 0.0)
        assert gap(layer.out_proj(mixed), before) <= 1e-9


@each_name
def test_cross_attention_equals_the_reference_or_is_refused(name: str) -> None:
    case = next(case for case in MAIN if case.mechanism == name)
    layer, x, context = case.build(64).double(), tokens(64), tokens(41, seed=2)
    if not capable(name).cross:
        with pytest.raises(ValueError, match="cross"):
            layer(x, context=context)
        return
    assert_equals_reference(layer, x, 1e-10, 1e-8, context=context)
    seen = padding(41)
    y = layer(x, context=context, context_visible=seen)
    junk = context.masked_fill(~seen[..., None], float("nan"))
    assert torch.equal(y, layer(x, context=junk, context_visible=seen))
    assert gap(y, layer.reference(x, context=context, context_visible=seen)) <= 1e-10


@pytest.mark.parametrize(
    "case", [case for case in MAIN if case.mechanism in ("bigbird", "longformer")], ids=str
)
@pytest.mark.parametrize("block_size", [1, 16])
def test_global_positions_of_each_sample(case: Case, block_size: int) -> None:
    """Two samples with other positions are what two layers with these positions as options give."""
    size = {"block_size": block_size} if case.mechanism == "bigbird" else {}
    layer = case.build(70, **size, n_global=0).double()
    x, positions = tokens(70), torch.tensor([[3, 50, -1], [69, -1, -1]])
    assert_equals_reference(layer, x, 1e-10, 1e-8, global_positions=positions)
    assert_equals_reference(layer, x, 1e-10, 1e-8, global_positions=positions, visible=padding(70))
    y = layer(x, global_positions=positions)
    for b, listed in enumerate([(3, 50), (69,)]):
        fixed = case.build(70, **size, n_global=0, global_tokens=listed).double()
        assert gap(fixed(x[b : b + 1]), y[b : b + 1]) <= 1e-10
    with pytest.raises(ValueError, match="70"):
        layer(x, global_positions=torch.tensor([[70], [0]]))


def largest_allocation(run) -> int:
    """Bytes of the largest single allocation, inside operators too."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        run()
    return max(event.self_cpu_memory_usage for event in seen.events())


@one_of_each
def test_no_tensor_grows_with_the_square_of_the_length(case: Case) -> None:
    """Pattern building, forward and backward: 8,192 tokens need about twice the largest tensor of 4,096."""
    if case.mechanism == "full":
        pytest.skip("keeps every weight by definition")
    largest = []
    for n in (4096, 8192):
        wide = {"bucket_size": 64} if case.mechanism == "reformer" else {}
        layer, x = case.build(n, **wide), tokens(n, batch=1, dtype=torch.float32)
        largest.append(largest_allocation(lambda layer=layer, x=x: values_and_gradients(layer, layer, x)))
    assert largest[0] < 4096 * 4096
    assert largest[1] <= 2.3 * largest[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_newest_token_alone_is_the_last_of_all(case: Case) -> None:
    layer, x = case.build(48), tokens(48)
    layer, visible = layer.double(), padding(48)
    visible[:, -1] = True
    if not capable(case.mechanism).newest:
        with pytest.raises(ValueError, match="takes no 'newest'"):
            layer(x, newest=True)
        return
    assert gap(layer(x, newest=True), layer(x)[:, -1:]) <= 1e-12
    assert gap(layer(x, visible, newest=True), layer(x, visible)[:, -1:]) <= 1e-12
    rotary = case.build(48, rotary=True).double()
    assert gap(rotary(x, newest=True), rotary(x)[:, -1:]) <= 1e-12
