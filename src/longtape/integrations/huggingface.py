"""longtape's attention inside `transformers` models: same weights, same names, same outputs, less time and memory."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model) -> Model:
    """Put longtape's attention into a `transformers` BigBird or Longformer model, in place, and return the model.

    Weights, their names and all outputs stay as they are: all hidden states, with padding, in eval mode (where
    the library's BigBird repeats block 0 in place of random blocks, and counts the repeats) and in training mode (where
    each head draws its own blocks). Attention maps are not made: asking for them raises ValueError.

    ValueError if the model holds neither kind of attention. Needs the extra `huggingface`.

    `model = accelerate(BigBirdModel.from_pretrained("google/bigbird-roberta-base"))`
    """
    from longtape.integrations import _bigbird, _longformer

    found = _bigbird.replace(model) + _longformer.replace(model)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has nothing to accelerate: it holds no Longformer and no block-sparse BigBird "
            "attention (a BigBird model needs attention_type 'block_sparse', not 'original_full')"
        )
    return model
