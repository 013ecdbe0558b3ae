"""Several models of one kind, trained from different seeds, that speak as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from longtape.core.errors import UserError
from longtape.features.panel import Panel, Rows
from longtape.models.base import Array, Model
from longtape.models.batch import Batch
from longtape.models.prediction import Prediction


class Ensemble(Model):
    """The average of its members' predictions."""

    def __init__(self, members: Sequence[Model]) -> None:
        super().__init__(members[0].config, members[0].inputs)
        self.members = nn.ModuleList(members)

    def forward(self, batch: Batch) -> Prediction:
        return Prediction.average([member(batch) for member in self.members])

    def row_inputs(self, panel: Panel) -> Array:
        return self._first.row_inputs(panel)

    def hidden_states(self, batch: Batch) -> list[Tensor]:
        raise UserError("an average of several models has no hidden states of its own; look at a member")

    @property
    def future_steps(self) -> int:
        """As each member's."""
        return self._first.future_steps

    @property
    def label_offsets(self) -> Rows:
        """As each member's."""
        return self._first.label_offsets

    @property
    def reach(self) -> int:
        """As each member's."""
        return self._first.reach

    @property
    def _first(self) -> Model:
        return cast(Model, self.members[0])


def joined(members: Sequence[Model]) -> Model:
    """One model from members of equal standing; a single one stays itself."""
    return members[0] if len(members) == 1 else Ensemble(members)
