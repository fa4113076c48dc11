"""A recipe as a tree of plain values: what `recipe.yaml` holds, and the objects of other packages that it names.

A recipe file returns NeMo-Run configurations: `run.Config` of this package's dataclasses, and `lazy(...)` for the
classes of NeMo and Megatron, which only the process that trains imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from common.errors import ConfigurationError

if TYPE_CHECKING:
    import nemo_run as run

LAZY = "_lazy_"
"""Key of a tree that names the class which its other keys are the arguments of."""


@dataclass(frozen=True)
class Deferred:
    """A class of another package and its arguments, not imported yet."""

    target: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def build(self, **more: Any) -> Any:
        """Import the class and call it with the arguments; `more` has the last word."""
        arguments = {name: _built(value) for name, value in self.arguments.items() if name not in more}
        return resolve(self.target)(**(arguments | more))

    @classmethod
    def from_tree(cls, tree: Any, source: str, key: str) -> Deferred:
        """The inverse of `to_tree`.

        Raises:
            ConfigurationError: the tree names no class.
        """
        if not isinstance(tree, dict) or LAZY not in tree:
            raise ConfigurationError(
                f"{source}: {key} names no class of another package: write lazy('package.Class', …)."
            )
        arguments = {str(n): _with_deferred(v, source, f"{key}.{n}") for n, v in tree.items() if n != LAZY}
        return cls(str(tree[LAZY]), arguments)

    def to_tree(self) -> dict[str, Any]:
        """The class under `LAZY`, and its arguments."""
        return {LAZY: self.target, **{name: _plain(value) for name, value in self.arguments.items()}}


def _with_deferred(value: Any, source: str, key: str) -> Any:
    if isinstance(value, dict) and LAZY in value:
        return Deferred.from_tree(value, source, key)
    if isinstance(value, dict):
        return {name: _with_deferred(item, source, f"{key}.{name}") for name, item in value.items()}
    return [_with_deferred(item, source, key) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Deferred):
        return value.to_tree()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _built(value: Any) -> Any:
    if isinstance(value, Deferred):
        return value.build()
    if isinstance(value, dict):
        return {name: _built(item) for name, item in value.items()}
    return [_built(item) for item in value] if isinstance(value, list) else value


def lazy(target: str, **arguments: Any) -> run.Config[Any]:
    """A NeMo-Run configuration of `target` ("package.module.Class") that imports it only when it is built."""
    import nemo_run as run
    from nemo_run.cli.lazy import LazyTarget

    return run.Config(LazyTarget(target), **arguments)


def resolve(target: str) -> Any:
    """The object that `package.module.name` names, importing its module.

    Raises:
        ConfigurationError: there is no such module or name.
    """
    try:
        return resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"{target} cannot be imported ({error}): install the package with [nemo].") from None


def tree_of(config: Any) -> Any:
    """A NeMo-Run configuration as plain values: of this package's dataclasses the fields that were given."""
    import fiddle as fdl
    from nemo_run.cli.lazy import LazyTarget

    if isinstance(config, fdl.Buildable):
        target = fdl.get_callable(config)
        arguments = {name: tree_of(item) for name, item in fdl.ordered_arguments(config).items()}
        return {LAZY: target.import_path, **arguments} if isinstance(target, LazyTarget) else arguments
    if isinstance(config, Mapping):
        return {name: tree_of(item) for name, item in config.items()}
    if isinstance(config, list | tuple):
        return [tree_of(item) for item in config]
    return str(config) if isinstance(config, Path) else config
