"""What can go wrong within a step, said in one line: the step, the times of its windows, and the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from longtape.core.clock import iso
from longtape.core.errors import UserError
from longtape.features.panel import Panel, Rows
from longtape.models.batch import Batch
from longtape.training.config import TrainingConfig

_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")


class NotFinite(ArithmeticError):
    """A number of a step that is NaN or infinite."""

    what: str

    def __init__(self, value: float) -> None:
        super().__init__(f"{self.what} is {value}")


class LossNotFinite(NotFinite):
    """The loss of a batch."""

    what = "the loss"


class GradientNotFinite(NotFinite):
    """The norm of a gradient."""

    what = "the norm of the gradient"


@contextmanager
def step_guard(config: TrainingConfig, panel: Panel, epoch: int, step: int, rows: Rows) -> Iterator[None]:
    """Turn what goes wrong in a step into a UserError. Nothing is saved then: the last checkpoint stands."""
    where = f"training: epoch {epoch + 1}, step {step + 1} (windows known {_span(panel, rows)})"
    try:
        yield
    except NotFinite as error:
        raise UserError(f"{where}: {error}; {_calmer(config)}; {_RESUME}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{where}: the memory is used up; {_smaller(config)}; {_RESUME}") from error


_RESUME = "the last checkpoint stands"


def _span(panel: Panel, rows: Rows) -> str:
    known = panel.known_at[rows]
    return f"{iso(int(known.min()))} to {iso(int(known.max()))}"


def _calmer(config: TrainingConfig) -> str:
    ways = [f"lower training.learning_rate ({config.learning_rate:g}) or clip_norm ({config.clip_norm:g})"]
    if config.precision == "float16":
        ways.append("or take precision bfloat16 or float32, whose range is wider")
    return " ".join(ways)


def _smaller(config: TrainingConfig) -> str:
    size = config.batch_size
    if size > 1:
        half = f"training.batch_size={size // 2} with accumulate={2 * config.accumulate} takes the same steps"
        return f"{half}, model.gradient_checkpointing=true keeps less"
    return "take model.gradient_checkpointing=true, a shorter lookback or larger patches"


def is_out_of_memory(error: BaseException) -> bool:
    """True for what torch and Python raise where memory is used up."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in _NO_MEMORY
    )


def check_batch(batch: Batch, panel: Panel, rows: Rows) -> Batch:
    """The batch itself. UserError naming time and column where a window that ends at one of `rows` holds no number.

    NaN stands for an absent asset and is allowed where the panel has any; an infinite value never is.
    """
    x = batch.x.numpy()
    bad = ~np.isfinite(x) if panel.present.all() else np.isinf(x)
    if not bad.any():
        return batch
    window, place, column = (int(i[0]) for i in np.nonzero(bad))
    row = int(rows[window]) - x.shape[1] + 1 + place
    raise UserError(
        f"training: the bar known at {iso(int(panel.known_at[row]))} has {x[window, place, column]} as"
        f" '{panel.columns[column]}'; mend the data (longtape data check) and train again"
    )
