"""The base of every config class: strict, frozen, and refusing keys it does not know."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class Settings(BaseModel):
    """Base of all config classes.

    A config class sits beside the class it describes and has a `build(...)` method that makes it. Validation that needs
    only the config's own fields belongs in a pydantic validator here; what needs two configs is checked in `config.py`.
    The string under a field describes it in the JSON schema, and so in the studio.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)  # most are never used

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, data: Any) -> Any:
        """YAML and JSON have lists where fields are tuples, which strict validation of Python values keeps apart."""
        return {key: _frozen(value) for key, value in data.items()} if isinstance(data, dict) else data

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With descriptions. Pydantic's own way reads them at import, which every command would wait for."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for owner in cls.__mro__:
            for name, text in _described(owner.__module__).get(owner.__qualname__, {}).items():
                if name in properties:
                    properties[name].setdefault("description", text)
        return schema


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


@cache
def _described(module: str) -> Mapping[str, Mapping[str, str]]:
    """The strings under the fields of a module's classes: {class: {field: description}}. None without its source."""
    try:
        body = ast.parse(inspect.getsource(sys.modules[module])).body
    except (OSError, TypeError):
        return {}
    return {
        node.name: {
            field.target.id: inspect.cleandoc(below.value.value)
            for field, below in pairwise(node.body)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        }
        for node in body
        if isinstance(node, ast.ClassDef)
    }
