"""YAML that somebody else wrote: bounded in size, in depth and in what its aliases stand for."""

from __future__ import annotations

from typing import Any

import yaml

from common.errors import ConfigurationError

LARGEST, MOST_VALUES = 2**20, 100_000
"""Bytes of a text, and values that it may stand for once every alias is written out."""


def parse_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The value of a YAML document.

    PyYAML reads a kilobyte of aliases of aliases at once; whoever walks through the result would never end.

    Raises:
        yaml.YAMLError: it is no YAML. ConfigurationError: it is too large, too deep, or refers to itself.
    """
    if len(text) > LARGEST:
        raise ConfigurationError(f"it has {len(text):,} characters, {LARGEST:,} are read.")
    reader = loader(text)
    try:
        node = reader.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > MOST_VALUES:
            raise ConfigurationError(f"its aliases (*name) stand for more than {MOST_VALUES:,} values: write them out.")
        return reader.construct_document(node)
    except RecursionError:
        raise ConfigurationError("it is nested too deeply.") from None
    finally:
        reader.dispose()


def _values(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Values that a node stands for, each alias counted as what it names."""
    if id(node) in known:
        if (count := known[id(node)]) is None:
            raise ConfigurationError("an alias (*name) in it stands for what holds it.")
        return count
    known[id(node)] = None
    inner = [] if isinstance(node, yaml.ScalarNode) else node.value
    pairs = [part for each in inner for part in (each if isinstance(each, tuple) else (each,))]
    known[id(node)] = count = 1 + sum(_values(part, known) for part in pairs)
    return count
