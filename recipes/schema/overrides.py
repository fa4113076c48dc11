"""`key=value` on the command line: any field of a recipe, checked before anything runs.

A field of one of our dataclasses is checked against its type. An argument of a class of another package is free where
the recipe already names it; any other is looked up in that class's signature, and only that imports the package.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterable
from typing import Any

from common.console import quietly
from common.errors import ConfigurationError
from common.fields import fit, near_ones, takes_text
from common.repository import PACKAGES
from common.values import parse_value
from recipes.schema.trees import resolve

if typing.TYPE_CHECKING:
    import nemo_run as run

SOURCE = "the recipe"


def apply_overrides(recipe: run.Config[Any], overrides: list[str]) -> None:
    """Set each `a.b.c=value` in the recipe.

    Raises:
        ConfigurationError: no `=`, an unknown key (the near ones are named), or a value of the wrong kind.
    """
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigurationError(f"{override!r} is no key=value: write for example trainer.max_steps=50.")
        *parents, name = key.split(".")
        node: Any = recipe
        for depth, parent in enumerate(parents):
            node = _child(node, parent, ".".join(parents[: depth + 1]), key)
        _set(node, name, text, key)


def _child(node: Any, name: str, path: str, key: str) -> Any:
    import fiddle as fdl

    if isinstance(node, dict):
        return node.setdefault(name, {})
    child = getattr(node, name, None)
    if isinstance(child, fdl.Buildable | dict):
        return child
    parameters = _parameters(node)
    if name not in parameters:
        raise _unknown(key, path, parameters)
    child = _as_config(child, parameters[name], path, key)
    setattr(node, name, child)
    return child


def _as_config(value: Any, annotation: Any, path: str, key: str) -> Any:
    """A dataclass instance, or a dataclass type whose value is None, as a configuration that can be changed."""
    import nemo_run as run

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return run.Config(type(value), **fields)
    for option in typing.get_args(annotation) or (annotation,):
        if dataclasses.is_dataclass(option):
            return run.Config(option)  # pyright: ignore[reportArgumentType]
    raise ConfigurationError(f"{key}: {path} is a plain value and has no fields: set it as a whole.")


def _set(node: Any, name: str, text: str, key: str) -> None:
    value = parse_value(text)
    if isinstance(node, dict):
        node[name] = value
        return
    import fiddle as fdl

    declared = name in fdl.ordered_arguments(node)
    if _is_lazy(node) and declared:
        setattr(node, name, _like(value, getattr(node, name), key))
        return
    parameters = _parameters(node)
    if name not in parameters:
        raise _unknown(key, key, parameters)
    if takes_text(parameters[name]) and value is not None:
        value = text  # a file may be called 007 or 1e5
    setattr(node, name, fit(parameters[name], value, key, SOURCE))


def _is_lazy(node: Any) -> bool:
    import fiddle as fdl
    from nemo_run.cli.lazy import LazyTarget

    return isinstance(fdl.get_callable(node), LazyTarget)


def _parameters(node: Any) -> dict[str, Any]:
    """Names and types of what `node` accepts; for a class of another package this imports it."""
    import fiddle as fdl

    target: Any = fdl.get_callable(node)
    if not _is_lazy(node):
        return typing.get_type_hints(target, include_extras=True)
    with quietly():
        if target.import_path.split(".")[0] in ("nemo", "megatron", *PACKAGES):
            from modeling import cpu_backend

            cpu_backend.activate()  # before they look for CUDA
        target = resolve(target.import_path)
    if dataclasses.is_dataclass(target):
        return dict.fromkeys((field.name for field in dataclasses.fields(target)), Any)
    return dict.fromkeys((parameter.name for parameter in _signature_chain(target)), Any)


def _signature_chain(target: Any) -> list[inspect.Parameter]:
    """Parameters of a class, with those of its bases as long as **kwargs hands them on."""
    named: list[inspect.Parameter] = []
    for cls in inspect.getmro(target) if inspect.isclass(target) else (target,):
        if inspect.isclass(cls) and "__init__" not in vars(cls):
            continue
        parameters = list(inspect.signature(cls).parameters.values())
        named += [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"]
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return named


def _unknown(key: str, path: str, names: Iterable[str]) -> ConfigurationError:
    return ConfigurationError(f"{key}: there is no field {path!r} in this recipe; {near_ones(path, names)}.")


def _like(value: Any, present: Any, key: str) -> Any:
    """`value` for an argument that the recipe sets already, checked against the kind of the present value."""
    if value is None or present is None:
        return value
    if isinstance(present, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    numbers = (int, float)
    if isinstance(present, bool) != isinstance(value, bool) or (
        isinstance(present, numbers) and not isinstance(value, numbers)
    ):
        raise ConfigurationError(
            f"{key}: {value!r} cannot stand for {present!r}, which the recipe has there: give a value of its kind."
        )
    return value
