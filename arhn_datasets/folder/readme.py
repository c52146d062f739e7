"""The metadata at the top of a README."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def metadata_of(path: Path) -> dict[str, Any] | None:
    """The metadata of a README file as the Hub reads them; None where there are none, or they are no YAML mapping."""
    import yaml
    from huggingface_hub import metadata_load

    try:
        found = metadata_load(path)
    except (ValueError, yaml.YAMLError):  # of text that is no UTF-8 as well
        return None
    return found if isinstance(found, dict) else None
