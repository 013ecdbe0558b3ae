"""The same weights and the same pattern give what independent implementations give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from longtape.attention import Attention, build_attention


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def copy_linear(source: nn.Linear, target: nn.Linear) -> None:
    with torch.no_grad():
        target.weight.copy_(source.weight)
        target.bias.zero_() if source.bias is None else target.bias.copy_(source.bias)


def layer(name: str, n: int, peer: nn.Module, names: dict[str, str], **options) -> Attention:
    """Our layer in float64 with the peer's projections and no output projection, unless the peer has one."""
    ours = build_attention(name, d_model=32, n_heads=4, seq_len=n, **options)
    for mine, theirs in names.items():
        copy_linear(getattr(peer, theirs), getattr(ours, mine))
    if "out_proj" not in names:
        nn.init.eye_(ours.out_proj.weight)
        nn.init.zeros_(ours.out_proj.bias)
    return ours.double().eval()


def tokens(n: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, n, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def pads(n: int) -> torch.Tensor:
    """The second sample ends 10 tokens early: a window without any visible key gives NaN gradients in Longformer's."""
    return torch.arange(n) < torch.tensor([[n], [n - 10]])


def same_gradients(ours: nn.Module, ours_out: torch.Tensor, x: torch.Tensor, peer_out: torch.Tensor) -> float:
    weighting = torch.randn(ours_out.shape, dtype=ours_out.dtype, generator=torch.Generator().manual_seed(3))
    mine, theirs = (torch.autograd.grad((y * weighting).sum(), x)[0] for y in (ours_out, peer_out))
    return gap(mine, theirs)


# --- transformers: BigBird, block-sparse ---


@pytest.mark.parametrize("padded", [False, True])
def test_transformers_bigbird_with_our_random_blocks(padded: bool) -> None:
    library = pytest.importorskip("transformers.models.big_bird.modeling_big_bird")
    n, size, blocks = 208, 8, 26
    config = library.BigBirdConfig(
        hidden_size=32, num_attention_heads=4, block_size=size, num_random_blocks=3, max_position_embeddings=n
    )
    peer = library.BigBirdBlockSparseAttention(config, seed=0).double().eval()
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
    ours = layer("bigbird", n, peer, names, block_size=size, window_size=3, n_random=3, n_global=2)
    drawn = random_blocks(ours.visible_pairs(n), size)
    peer._bigbird_block_rand_mask_with_head = lambda **_: [drawn] * 4
    visible = pads(n) if padded else torch.ones(2, n, dtype=torch.bool)
    masks = library.BigBirdModel.create_masks_for_block_sparse_attn(visible.double(), size)
    blocked, band, rows, columns = masks
    x = tokens(n).requires_grad_()
    y, expected = ours(x, visible=visible), peer(x, band, rows, columns, blocked, blocked)[0]
    assert gap(y, expected) < 1e-10
    assert same_gradients(ours, y, x, expected) < 1e-10
    assert blocks == len(drawn) + 2


def random_blocks(pairs: torch.Tensor, size: int) -> np.ndarray:
    """Blocks that a query block sees beside its window and the two global ones, [blocks − 2, 3]."""
    seen = pairs[::size, ::size]
    last = len(seen) - 1
    return np.array([[j for j in range(1, last) if seen[i, j] and abs(i - j) > 1] for i in range(1, last)])


# --- transformers: Longformer ---


@pytest.mark.parametrize(("window", "n"), [(32, 192), (256, 1024)])
@pytest.mark.parametrize("n_global", [0, 5])
@pytest.mark.parametrize("padded", [False, True])
def test_transformers_longformer(window: int, n: int, n_global: int, padded: bool) -> None:
    """Its even attention_window counts both sides without the token itself: 256 there is 257 here."""
    library = pytest.importorskip("transformers.models.longformer.modeling_longformer")
    config = library.LongformerConfig(
        hidden_size=32, num_attention_heads=4, attention_window=[window], attention_probs_dropout_prob=0.0
    )
    peer = library.LongformerSelfAttention(config, layer_id=0).double().eval()
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
    names |= {f"global_{name}": f"{theirs}_global" for name, theirs in names.items()}
    ours = layer(
        "longformer", n, peer, names, window_size=window + 1, n_global=n_global, global_tokens="first"
    )
    visible = pads(n) if padded else torch.ones(2, n, dtype=torch.bool)
    everywhere = ((torch.arange(n) < n_global) & visible).expand(2, n)
    mask = torch.where(everywhere, 10_000.0, torch.where(visible, 0.0, -10_000.0)).double()
    x = tokens(n).requires_grad_()
    y = ours(x, visible=visible)
    expected = peer(x, mask, ~visible, everywhere, bool(everywhere.any()))[0]
    assert gap(y, expected) < 1e-6  # the library's softmax runs in float32 whatever the dtype
    assert same_gradients(ours, y, x, expected) < 1e-5


# --- linformer ---


@pytest.mark.parametrize("share_kv", [False, True])
@pytest.mark.parametrize("n", [96, 70])
def test_linformer_package(share_kv: bool, n: int) -> None:
    package = pytest.importorskip("linformer")
    peer = package.LinformerSelfAttention(32, 96, k=16, heads=4, share_kv=share_kv)
    names = {"q_proj": "to_q", "k_proj": "to_k", "out_proj": "to_out"}
    names["v_proj"] = "to_k" if share_kv else "to_v"
    ours = layer("linformer", 96, peer, names, k=16, sharing="key_value" if share_kv else "headwise")
    with torch.no_grad():
        ours.E.weight.copy_(peer.proj_k.T)
        if not share_kv:
            ours.F.weight.copy_(peer.proj_v.T)
    x = tokens(n).requires_grad_()
    y, expected = ours(x), peer.double()(x)
    assert gap(y, expected) < 1e-10
    assert same_gradients(ours, y, x, expected) < 1e-10


# --- performer-pytorch ---


def test_performer_package_with_eps_zero() -> None:
    package = pytest.importorskip("performer_pytorch.performer_pytorch")
    ours = build_attention("performer", d_model=32, n_heads=4, n_features=24).double().eval()
    x = tokens(100)
    q, k, v = ours.project(x)
    kernel = {"projection_matrix": ours.features.double(), "eps": 0.0}
    expected = package.linear_attention(
        package.softmax_kernel(q, is_query=True, **kernel),
        package.softmax_kernel(k, is_query=False, **kernel),
        v,
    )
    assert gap(ours.attend(q, k, v, None), expected) < 1e-10


def test_performer_features_are_orthogonal_within_a_block() -> None:
    features = build_attention("performer", d_model=32, n_heads=4, n_features=24).features.double()
    for block in features.split(8):
        product = block @ block.T
        assert (product - product.diagonal().diag()).abs().max() < 1e-4 * product.abs().max()
