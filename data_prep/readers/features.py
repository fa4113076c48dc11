"""The names of classes that a Hugging Face data set keeps as numbers (`ClassLabel`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Column → names of its classes, from the metadata of a Parquet or Arrow schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        found = {column: _names(feature) for column, feature in features.items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {column: names for column, names in found.items() if names}


def _names(feature: Any) -> list[str] | None:
    """The names of a class, or of a list of classes."""
    if isinstance(feature, list) and len(feature) == 1:
        return _names(feature[0])
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") in ("Sequence", "List", "LargeList"):
        return _names(feature.get("feature"))
    names = feature.get("names")
    return [str(name) for name in names] if feature.get("_type") == "ClassLabel" and isinstance(names, list) else None


def with_names(value: Any, names: list[str]) -> Any:
    """The name of a class's number, or of each in a list; -1 stands for none, and an unknown number stays."""
    if isinstance(value, list):
        return [with_names(each, names) for each in value]
    if isinstance(value, int) and value < len(names):
        return names[value] if value >= 0 else None
    return value
