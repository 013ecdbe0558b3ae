"""How a file is written, where it does not tell by itself: the options of `longtape import` and of `data.read`."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from longtape.core.calendars import time_zone
from longtape.core.errors import UserError, unknown_name

Stamp = Literal["open", "close"]
OURS = ("timestamp", "open", "high", "low", "close", "volume", "adj_close", "turnover", "symbol")
MAY_BE_LEFT_OUT = ("open", "high", "low", "volume")


class FileConfig(BaseModel):
    """What the user says about a file. Everything that is left out is found in the file itself, or refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stamp: Stamp | None = Field(
        None, description="whether times are those at which bars open (the default) or close"
    )
    columns: dict[str, str] = Field({}, description="our names and the file's, where they are others")
    order: list[str] | None = Field(
        None,
        description="our names of the columns of a file without a header, in order; - for one to pass over",
    )
    symbol_column: str | None = Field(None, description="the column of symbols of a long table")
    time_format: str | None = Field(
        None, description="how times are written: a strptime pattern, s, ms, us or ns since 1970, or excel"
    )
    time_zone: str | None = Field(
        None, description="of times without a zone, UTC by default: America/New_York, or -05:00"
    )
    decimal: Literal[".", ","] | None = Field(None, description="the decimal mark of numbers")
    newest_first: bool = Field(False, description="the rows run backwards in time")
    drop_empty: bool = Field(False, description="leave out rows without any price; they become gaps")
    without: list[str] = Field([], description="columns to leave out: open, high, low, volume")
    sheet: str | None = Field(None, description="the sheet of a workbook")

    @field_validator("columns")
    @classmethod
    def _names_are_ours(cls, given: dict[str, str]) -> dict[str, str]:
        for name in given:
            if name not in OURS:
                raise ValueError(f"'{name}' is not one of our columns ({', '.join(OURS)})")
        return given

    @field_validator("without")
    @classmethod
    def _can_be_left_out(cls, given: list[str]) -> list[str]:
        for name in given:
            if name not in MAY_BE_LEFT_OUT:
                raise ValueError(f"'{name}' cannot be left out; {', '.join(MAY_BE_LEFT_OUT)} can")
        return given

    @field_validator("order")
    @classmethod
    def _order_has_what_a_bar_needs(cls, given: list[str] | None) -> list[str] | None:
        for name in given or []:
            if name not in (*OURS, "time", "date", "-"):
                raise unknown_name("column", name, (*OURS, "time", "date", "-"))
        if given is not None and not ({"timestamp", "time", "date"} & {*given} and "close" in given):
            raise ValueError("a bar needs time and close at least")
        return given

    @field_validator("time_zone")
    @classmethod
    def _zone_is_known(cls, given: str | None) -> str | None:
        if given is not None and not re.fullmatch(r"[+-]\d\d:\d\d", given):
            time_zone(given)
        return given

    @model_validator(mode="after")
    def _one_way_to_name_columns(self) -> FileConfig:
        if self.order and self.columns:
            raise ValueError("columns are named by their order or by their names, not both")
        return self


def file_config(**options: Any) -> FileConfig:
    """The options as a document; UserError in one line, naming the option."""
    try:
        return FileConfig(**options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{name}: {message}" if name else message) from None
