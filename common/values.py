"""Values as people write them, and errors as people read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import ConfigurationError
from common.yaml_text import parse_yaml

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """`80GB` (10⁹ bytes each), `500 MB` or `2GiB` in bytes.

    Raises:
        ConfigurationError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise ConfigurationError(f"{text!r} is no size: write for example 80GB or 500MB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def checked_size(value: Any) -> Any:
    """The value unchanged, if it is None or a size.

    Raises:
        ConfigurationError: it is neither.
    """
    if value is not None:
        parse_size(str(value))
    return value


def size_text(size: int) -> str:
    """Bytes as people read them: `13.8 GB`, `1.0 MB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def bytes_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def size_of(folder: Path) -> str:
    """Bytes of all files below a folder, as people read them."""
    return size_text(bytes_of(folder))


def parse_value(text: str) -> Any:
    """`50`, `2e-4`, `true`, `null`, `[a, b]` and `{a: 1}` as Python values; anything else is the text itself.

    Raises:
        ConfigurationError: it is nested too deeply, or its aliases stand for too much.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        parse_yaml(text)  # refuses what OmegaConf would take a lifetime for
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index,call-overload]
    except (OmegaConfBaseException, yaml.YAMLError, ValueError):
        return text


def one_line(error: BaseException | str, most: int = 200) -> str:
    """An exception's message on one line of at most `most` characters; its type's name where the message is empty.

    What a terminal would obey, and what cannot be seen, is shown as a replacement character.
    """
    text = " ".join(str(error)[: 20 * most].split()) or type(error).__name__
    text = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def listed(reasons: Sequence[str]) -> str:
    """One reason as it is, several as a list, for the message of an error."""
    if len(reasons) == 1:
        return reasons[0]
    return f"{len(reasons)} things stand in the way:\n" + "\n".join(f"  - {each}" for each in reasons)
