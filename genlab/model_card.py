"""The README.md of an export: a model card in the hub's format."""

from __future__ import annotations

import json
from typing import Any

_CARD = """---
library_name: genlab
tags: [image-generation, class-conditional]
{license}---

# {name}

A class-conditional image generator made with [genlab](https://github.com/genlab/genlab).

| | |
|---|---|
{rows}

```python
from genlab.pretrained import from_pretrained

generator = from_pretrained("PATH_OR_HUB_ID")
```

or `genlab sample PATH_OR_HUB_ID --per-class 4 --out samples`.

## Classes

{classes}

## How it was made

```json
{parts}
```
"""


def model_card(description: dict[str, Any], header: dict[str, str]) -> str:
    """Markdown with a YAML head, from an export's description and its weights' header."""
    names = description["class_names"]
    shown = ", ".join(f"{i} {name}" for i, name in enumerate(names[:50])) + (" ..." if len(names) > 50 else "")
    license_line = "" if description["license"] == "unspecified" else f"license: {description['license']}\n"
    return _CARD.format(
        name=description["name"],
        license=license_line,
        rows="\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in header.items() if key != "format"),
        classes=shown or "None: the generator is unconditional.",
        parts=json.dumps({key: description[key] for key in ("tokenizer", "network", "process", "sampling")}, indent=1),
    )
