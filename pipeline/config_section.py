"""What every section of a config has in common, and the kinds of numbers and names in them."""

from typing import Annotated, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]  # 1 would never forget
# These names become folders.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)]


def _readable_address(text: str) -> str:
    try:
        urlsplit(text)
    except ValueError as error:
        raise ValueError(f"{error}; use https://…, s3://… or the path of a folder") from None
    return text


Address = Annotated[str, AfterValidator(_readable_address)]


def _types_in(annotation: object) -> set[object]:
    inner = get_args(annotation)
    return set().union(*map(_types_in, inner)) if inner else {annotation}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_guessing(cls, value: object, info: ValidationInfo) -> object:
        """Refuse `true` for a number and text for either; pydantic would convert them."""
        assert info.field_name is not None
        wanted = _types_in(cls.model_fields[info.field_name].annotation)
        if isinstance(value, bool) and wanted & {int, float} and bool not in wanted:
            raise ValueError("a number is needed")
        if isinstance(value, str) and wanted <= {int, float, bool, type(None)}:
            raise ValueError("true or false is needed" if bool in wanted else "a number is needed")
        return value
