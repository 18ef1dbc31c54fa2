"""Define the base of schemas for the JSON in checkpoints."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict

from fmeco.plugins.keys import Ge, Gt, Le


class Stored(BaseModel):
    """Declare the fields of a JSON object in a checkpoint, as a subclass. Fields that it does not declare are allowed."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


LARGEST = 2**40  # of a count or size; much larger ones overflow in torch
Count = Annotated[int, Ge(0), Le(LARGEST)]
Size = Annotated[int, Gt(0), Le(LARGEST)]
Positive = Annotated[float, Gt(0)]
