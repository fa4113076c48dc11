"""Dataclasses from trees of plain values (YAML, JSON, the command line) and back: the one checker of typed settings.

A field's annotation says what is allowed: text, numbers, `Literal`, lists, dictionaries, other dataclasses, `None`. In
`Annotated[str, check]` the function `check` gets the value first, and returns the value to use or raises a
ConfigurationError. A class with a method `from_tree` reads its own tree.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from common.errors import ConfigurationError
from common.values import one_line

T = TypeVar("T")
_PLURALS = {str: "texts", int: "whole numbers", float: "numbers"}
_WORDS = {str: "text", Path: "a path", int: "a whole number", float: "a number", bool: "true or false"}


def from_tree(cls: type[T], tree: Any, source: str, key: str = "") -> T:
    """The instance of a dataclass that `tree` describes.

    Args:
        source: what errors name, such as the file.
        key: where in the source the tree stands.
    Raises:
        ConfigurationError: an unknown key (near ones are named), a missing one, or a value of another kind.
    """
    if not isinstance(tree, dict):
        raise ConfigurationError(
            f"{source}: {key or 'it'} holds no keys but {_shown(tree)}: write KEY: VALUE below it."
        )
    hints = typing.get_type_hints(cls, include_extras=True)
    values: dict[str, Any] = {}
    for name, value in tree.items():
        whole = f"{key}.{name}" if key else str(name)
        if name not in hints:
            raise ConfigurationError(f"{source}: there is no key {whole!r}; {near_ones(whole, hints)}.")
        values[name] = fit(hints[name], value, whole, source)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigurationError(f"{source}: {key or 'it'} lacks {field.name}: add it.")
    return cls(**values)


def fit(annotation: Any, value: Any, key: str, source: str) -> Any:
    """`value` converted to the annotation's type: a whole number to a float, a list to a tuple, …

    Raises:
        ConfigurationError: it does not fit.
    """
    if typing.get_origin(annotation) is Annotated:
        annotation, *checks = typing.get_args(annotation)
        for check in checks:
            try:
                value = check(value)
            except ConfigurationError as error:
                raise ConfigurationError(f"{source}: {key}: {error}") from None
    options = _options(annotation)
    for option in options:
        fits, fitted = _fit_one(option, value, key, source)
        if fits:
            return fitted
    raise ConfigurationError(f"{source}: {key} should be {' or '.join(map(_wanted, options))}, not {_shown(value)}.")


def near_ones(key: str, known: Iterable[str]) -> str:
    """A clause that names the known keys beside `key`: those spelled like it, or else all."""
    prefix, _, name = key.rpartition(".")
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or sorted(names)[:8]
    return "near ones are " + ", ".join(f"{prefix}.{each}" if prefix else each for each in near)


def takes_text(annotation: Any) -> bool:
    """Whether a field takes any text, so that what looks like a number or a truth value there is text as well."""
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return any(option in (str, Path) for option in _options(annotation))


def to_tree(value: Any, *, omit_defaults: bool = False) -> Any:
    """The plain values that `from_tree` builds `value` from.

    Args:
        omit_defaults: leave out fields of dataclasses that have their default values.
    """
    if hasattr(value, "to_tree"):
        return value.to_tree()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in dataclasses.fields(value) if not (omit_defaults and getattr(value, f.name) == _default(f))]
        return {f.name: to_tree(getattr(value, f.name), omit_defaults=omit_defaults) for f in fields}
    if isinstance(value, dict):
        return {name: to_tree(item, omit_defaults=omit_defaults) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_tree(item, omit_defaults=omit_defaults) for item in value]
    return str(value) if isinstance(value, Path) else value


def _options(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union; else the annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _fit_one(option: Any, value: Any, key: str, source: str) -> tuple[bool, Any]:
    """Whether `value` fits one alternative of a type, and the converted value."""
    kind, arguments = typing.get_origin(option) or option, typing.get_args(option)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if option is Any:
        return True, value
    if kind in (type(None), None):
        return value is None, None
    if kind is Literal:
        return value in arguments, value
    if kind is tuple and isinstance(value, list | tuple):
        return True, tuple(fit(arguments[0], item, key, source) for item in value)
    if kind is list and isinstance(value, list | tuple):
        return True, [fit(arguments[0], item, key, source) for item in value]
    if kind is dict and isinstance(value, dict):
        return True, {str(name): fit(arguments[1], item, f"{key}.{name}", source) for name, item in value.items()}
    if kind is float:
        return number, float(value) if number else value
    if kind in (str, Path):
        return isinstance(value, str | Path) or number, kind(str(value))
    if kind in (int, bool):
        return type(value) is kind, value
    if not isinstance(kind, type) or value is None:
        return False, value
    if isinstance(value, kind):
        return True, value
    if hasattr(kind, "from_tree"):
        return True, kind.from_tree(value, source, key)  # type: ignore[attr-defined]
    return (True, from_tree(kind, value, source, key)) if dataclasses.is_dataclass(kind) else (False, value)


def _shown(value: Any) -> str:
    return one_line(repr(value), 100)


def _wanted(option: Any) -> str:
    kind, arguments = typing.get_origin(option) or option, typing.get_args(option)
    if kind is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if kind in (tuple, list):
        return f"a list of {_PLURALS.get(arguments[0], 'sets of keys')}"
    if kind in (type(None), None):
        return "null"
    return _WORDS.get(kind, "keys")


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
