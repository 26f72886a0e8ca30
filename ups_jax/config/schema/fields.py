"""Types and checks that the sections of the configuration share.

A section is a frozen pydantic dataclass. The string below a field explains it in one or two sentences with units;
`tools/config_reference.py` copies it into docs/config.md.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

STRICT = ConfigDict(extra="forbid")

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]


def name_normalizer(aliases: dict[str, str]) -> BeforeValidator:
    """Return a validator that converts a name to lower case and an alias to the name for which it stands."""
    return BeforeValidator(lambda name: aliases.get(name.lower(), name.lower()) if isinstance(name, str) else name)


def check_one_unit(section: object, *keys: str) -> None:
    """Check that each length is set in epochs (`key`) or in optimizer steps (`key_steps`), not in both.

    Raises:
        ValueError: Both keys of a length are set.
    """
    for key in keys:
        if getattr(section, key) is not None and getattr(section, f"{key}_steps") is not None:
            raise ValueError(
                f"`{key}` (epochs) and `{key}_steps` (optimizer steps) are both given; set one of them to null"
            )
