"""The base of every config class: strict, frozen, and refusing keys it does not know."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all config classes.

    A config class sits beside the class it describes and has a `build(...)` method that makes it. Validation that needs
    only the config's own fields belongs in a pydantic validator here; what needs two configs is checked in `config.py`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
