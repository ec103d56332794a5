"""The base of every config class: strict, frozen, and refusing keys it does not know."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Settings(BaseModel):
    """Base of all config classes.

    A config class sits beside the class it describes and has a `build(...)` method that makes it. Validation that needs
    only the config's own fields belongs in a pydantic validator here; what needs two configs is checked in `config.py`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, data: Any) -> Any:
        """YAML and JSON have lists where fields are tuples, which strict validation of Python values keeps apart."""
        return {key: _frozen(value) for key, value in data.items()} if isinstance(data, dict) else data


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
