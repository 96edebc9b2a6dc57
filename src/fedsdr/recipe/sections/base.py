"""What all sections of a recipe have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Section(BaseModel):
    """Unknown keys are errors: a misspelt option must not be silently a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")
