"""Token ids and labels from a file, as rows that a trainer reads: a row is a whole sequence."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from longtape.core.clock import ALWAYS_OPEN
from longtape.core.errors import UserError
from longtape.features.build import EVENTS
from longtape.features.panel import Column, Panel, Rows, TargetColumn
from longtape.market.files import read_parquet
from longtape.models.base import ModelInputs
from longtape.models.tokens import PADDING, TokensConfig, refuse_ids

PARTS = ("train", "validation", "test")
NAME, KIND = "tokens", "label"


@dataclass(frozen=True, eq=False)
class TokenData:
    """Sequences as a panel of S rows: ids [S, length] padded by −1, labels [S, 1] or [S, length]; rows of each part."""

    panel: Panel
    train: Rows
    validation: Rows
    test: Rows
    fingerprint: str

    def inputs(self) -> ModelInputs:
        """What a model must know of them: nothing is scaled."""
        n, k = self.panel.values.shape[1], self.panel.targets.shape[1]
        columns, targets = self.panel.columns, self.panel.target_columns
        return ModelInputs(
            columns, (NAME,), targets, EVENTS, ALWAYS_OPEN, np.zeros(n), np.ones(n), np.ones(k)
        )

    def counts(self, rows: Rows, vocabulary: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """How often each id stands in each sequence [n, vocabulary]."""
        ids = self.panel.values[rows].astype(np.int64)
        out = np.zeros((len(rows), vocabulary + 1))
        np.add.at(out, (np.arange(len(rows))[:, None], ids), 1.0)  # padding counts in the last column
        return out[:, :-1]


def read_tokens(path: str | Path, config: TokensConfig) -> TokenData:
    """A Parquet file with `ids` (a list of whole numbers a row), `label` (a whole number, or a list of one for each id,
    null where there is none) and `split` (train, validation or test).

    UserError naming the file, the row and what does not fit the model's length, vocabulary, classes or outputs.
    """
    frame = read_parquet(Path(path))
    _check_columns(frame, config, str(path))
    values = np.full((frame.height, config.length), PADDING, np.float32)
    labels = np.full((frame.height, config.n_labels), np.nan)
    for row, (ids, label) in enumerate(zip(frame["ids"].to_list(), frame["label"].to_list(), strict=True)):
        where = f"{path}: row {row + 1}"
        tokens = np.array(ids, np.int64)
        refuse_ids(tokens, config, where)
        values[row, : len(tokens)] = tokens
        own = _labels(label, len(tokens), config, where)
        labels[row, : len(own)] = own
    train, validation, test = (_rows_of(frame, part, str(path)) for part in PARTS)
    fingerprint = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return TokenData(_panel(values, labels), train, validation, test, fingerprint)


def _rows_of(frame: pl.DataFrame, part: str, path: str) -> Rows:
    rows = np.flatnonzero((frame["split"] == part).to_numpy())
    if not len(rows):
        raise UserError(f"{path}: no row of the split '{part}'")
    return rows


def _check_columns(frame: pl.DataFrame, config: TokensConfig, path: str) -> None:
    for name in ("ids", "label", "split"):
        if name not in frame.columns:
            raise UserError(f"{path}: column '{name}' is missing; there are {', '.join(frame.columns)}")
    if not _whole(frame.schema["ids"], listed=True):
        raise UserError(f"{path}: column 'ids' is {frame.schema['ids']}, not lists of whole numbers")
    if frame["ids"].null_count() or frame["ids"].list.eval(pl.element().is_null()).list.any().any():
        raise UserError(f"{path}: column 'ids' has empty places; leave padding to longtape")
    of_tokens = config.outputs == "tokens"
    if not _whole(frame.schema["label"], listed=of_tokens):
        wanted = "lists of whole numbers, one for each id" if of_tokens else "a whole number for each row"
        raise UserError(
            f"{path}: column 'label' is {frame.schema['label']}; model.outputs: {config.outputs} takes {wanted}"
        )
    strange = frame.filter(~pl.col("split").is_in(PARTS).fill_null(False))
    if strange.height:
        raise UserError(f"{path}: split '{strange['split'][0]}' is none of {', '.join(PARTS)}")


def _whole(kind: pl.DataType, listed: bool) -> bool:
    inner = kind.inner if listed and isinstance(kind, pl.List) else kind
    return bool(isinstance(kind, pl.List) == listed and inner.is_integer())


def _labels(
    label: Any, n_tokens: int, config: TokensConfig, where: str
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Labels of a sequence, NaN where there is none."""
    given = label if isinstance(label, list) else [label]
    if config.outputs == "tokens" and len(given) != n_tokens:
        raise UserError(f"{where}: {len(given)} labels for {n_tokens} ids; give one for each")
    own = np.array([np.nan if one is None else one for one in given], np.float64)
    strange = (own < 0) | (own >= config.classes)
    if strange.any():
        raise UserError(
            f"{where}: label {own[strange][0]:g} is not from 0 to {config.classes - 1} (model.classes)"
        )
    return own


def _panel(
    values: np.ndarray[Any, np.dtype[np.float32]], labels: np.ndarray[Any, np.dtype[np.float64]]
) -> Panel:
    rows = np.arange(len(values))
    return Panel(
        timestamps=rows,
        known_at=rows,
        ordinals=rows,
        values=values,
        columns=tuple(Column(NAME, str(i)) for i in range(values.shape[1])),
        assets=(NAME,),
        present=np.ones((len(values), 1), bool),
        targets=labels,
        target_columns=tuple(TargetColumn(NAME, KIND, NAME, k + 1) for k in range(labels.shape[1])),
        target_ends=np.repeat(rows[:, None], labels.shape[1], axis=1),
        interval=EVENTS,
        calendar=ALWAYS_OPEN,
        warm_up=0,
        closes=np.ones((len(values), 1)),
        calendar_values=np.empty((len(values), 0), np.float32),
    )
