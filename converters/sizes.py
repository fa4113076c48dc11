"""Sizes as people write them."""

from __future__ import annotations

import re

from errors import ConfigurationError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """`5GB`, `500 MB` or `2GiB` in bytes.

    Raises:
        ConfigurationError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise ConfigurationError(f"{text!r} is no size: write for example 5GB or 500MB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])
