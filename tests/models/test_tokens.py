"""The token-id encoder: padding, global tokens, every mechanism, outputs of sequences and of tokens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from longtape.attention import MECHANISMS
from longtape.models.tokens import PADDING, TokenEncoder, TokensConfig
from longtape.training.batches import BatchSource
from longtape.workflow.token_data import TokenData, _panel

OPTIONS = {
    "bigbird": {"block_size": 4},
    "longformer": {"window_size": 5},
    "local": {"window_size": 9},
    "linformer": {"k": 8},
    "reformer": {"bucket_size": 8},
}
LENGTH, ROWS = 12, np.arange(24)


def data(of_tokens: bool = False, seed: int = 0) -> TokenData:
    """Sequences of 3 to 12 ids; the class is the first id's parity, or every token's own."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(3, LENGTH + 1, len(ROWS))
    ids = np.where(np.arange(LENGTH) < lengths[:, None], draw.integers(0, 6, (len(ROWS), LENGTH)), PADDING)
    labels = np.where(ids == PADDING, np.nan, ids % 2) if of_tokens else (ids[:, :1] % 2).astype(float)
    return TokenData(_panel(ids.astype(np.float32), labels), ROWS[:16], ROWS[16:20], ROWS[20:], "")


def encoder(**options) -> TokenEncoder:
    torch.manual_seed(0)
    given = {"length": LENGTH, "vocabulary": 6, "d_model": 8, "n_heads": 2, "n_layers": 1, "dropout": 0.0}
    config = TokensConfig(**(given | options))
    made = TokenEncoder(config, data(config.outputs == "tokens").inputs())
    torch.nn.init.normal_(made.output.weight)
    return made.eval()


def batch_of(made: TokenEncoder):
    return BatchSource(made, data(made.config.outputs == "tokens").panel).batch(ROWS)


@pytest.mark.parametrize("outputs", ["sequence", "tokens"])
@pytest.mark.parametrize("name", list(MECHANISMS))
def test_every_mechanism_tells_classes_and_learns(name, outputs):
    pooling = "mean" if name == "local" else "class"
    made = encoder(attention=name, attention_options=OPTIONS.get(name, {}), outputs=outputs, pooling=pooling)
    batch = batch_of(made)
    shape = (24, 1, 2) if outputs == "sequence" else (24, LENGTH, 2)
    assert made(batch).probabilities().shape == shape
    made.train()
    optimizer, losses = torch.optim.Adam(made.parameters(), 0.03), []
    for _ in range(12):
        loss = made(batch).loss(batch.y, batch.y_present)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("options", [{}, {"pooling": "mean"}, {"outputs": "tokens"}])
@pytest.mark.parametrize("name", ["flash", "bigbird", "longformer", "performer", "linformer"])
def test_what_is_padded_does_not_matter(name, options):
    """Padding is embedded as id 0: where no token has that id, its embedding changes nothing."""
    made = encoder(attention=name, attention_options=OPTIONS.get(name, {}), **options)
    batch = batch_of(made)
    padded = batch.x == PADDING
    assert padded.any()
    batch = replace(batch, x=torch.where(padded, batch.x, batch.x.clamp_min(1.0)))
    there = batch.y_present if made.config.outputs == "tokens" else batch.y_present[:, :1]
    with torch.no_grad():
        before = made(batch).probabilities()
        made.embedding.weight[0] += 3.0
        after = made(batch).probabilities()
    assert torch.allclose(before[there], after[there], atol=1e-6)
    assert (after[there] != 0.5).all()


def test_a_shorter_room_gives_the_same_classes():
    """The same ids in a model of another length: padding is what the difference would be."""
    wide, tight = (
        encoder(attention="flash", pooling="mean"),
        encoder(attention="flash", pooling="mean", length=20),
    )
    tight.load_state_dict(wide.state_dict())
    batch = batch_of(wide)
    room = torch.nn.functional.pad(batch.x, (0, 8), value=float(PADDING))
    with torch.no_grad():
        longer = tight._encode(room[:, 0].long())[-1][:, : LENGTH + 1]
        own = wide._encode(batch.x[:, 0].long())[-1]
    there = torch.nn.functional.pad(batch.x[:, 0] != PADDING, (1, 0), value=True)
    assert torch.allclose(longer[there], own[there], atol=1e-5)


def test_the_class_token_and_regular_ones_are_global():
    made = encoder(attention="bigbird", attention_options={"block_size": 1, "n_global": 0}, n_spaced=3)
    ids = torch.full((2, LENGTH), PADDING)
    ids[0], ids[1, :5] = 1, 1
    assert made._global_positions(ids).tolist() == [[0, 3, 7, 11], [0, 3, -1, -1]]
    assert encoder(attention="flash")._global_positions(ids) is None


def test_a_local_class_token_sees_the_beginning_and_the_global_ones():
    """One layer, a window of three tokens: what the first two ids and the spaced ones are, and nothing else."""
    options = {"block_size": 1, "window_size": 5, "n_global": 0, "n_random": 0}
    made = encoder(attention="bigbird", attention_options=options, n_spaced=1, class_sees="window")
    ids = torch.full((1, LENGTH), 2)
    with torch.no_grad():
        before = made._encode(ids)[-1][0, 0]
        seen = []
        for place in range(LENGTH):
            other = ids.clone()
            other[0, place] = 3
            if not torch.equal(made._encode(other)[-1][0, 0], before):
                seen.append(place)
    assert seen == [0, 1, made.spaced.item()]
    assert encoder(attention="local", class_sees="window").config.n_spaced == 0


def test_training_begins_at_the_frequencies():
    made, one = encoder(), data()
    torch.nn.init.zeros_(made.output.weight)
    made.fit(one.panel, one.train, one.validation)
    with torch.no_grad():
        p = made(batch_of(made)).probabilities()[:, 0]
    seen = np.bincount(one.panel.targets[one.train, 0].astype(int), minlength=2) + 1.0
    assert torch.allclose(p, torch.tensor(seen / seen.sum()).float().expand(24, 2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attention": "local"}, "no token sees all"),
        ({"attention": "flash", "class_sees": "window"}, "has no windows"),
        ({"attention": "flash", "attention_options": {"causal": True}}, "sees nothing"),
        ({"attention": "flash", "n_spaced": 2}, "no global tokens"),
        ({"attention": "bigbird", "n_spaced": 900}, "hold no 900"),
        ({"attention_options": {"global_tokens": "last"}}, "n_spaced"),
    ],
)
def test_what_would_have_no_effect_is_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        TokensConfig(**options)
