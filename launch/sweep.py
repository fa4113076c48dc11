"""A sweep: the points of a grid over a recipe's keys, and the run that each of them is."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigurationError, NemoRunError
from common.values import listed
from launch.executors.profiles import OVERRIDE
from pipeline.loading import configured, folder_named, make_run
from pipeline.run_folder import RunFolder
from pipeline.stage import fingerprint_of, stages_of

MOST = 500
"""Points of a sweep: more are a slip of the fingers."""
LONGEST = 80
"""Characters of a point's name."""
SEED = 0
BRACKETS = {"[": 1, "{": 1, "]": -1, "}": -1}


@dataclass(frozen=True)
class Axis:
    """A key of the recipe and the values that it takes, as they were written."""

    key: str
    values: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Axis:
        """`KEY=V1,V2,…`; commas inside brackets belong to a value.

        Raises:
            ConfigurationError: no key, fewer than two values, an empty one or the same one twice, or no recipe's key.
        """
        key, _, tail = text.partition("=")
        values = _split(tail)
        if not key or len(values) < 2 or "" in values:
            raise ConfigurationError(f"--sweep {text!r} names no values: write for example --sweep peft.dim=8,16.")
        if key == "name" or key.startswith(OVERRIDE):
            raise ConfigurationError(f"--sweep {key}: what is swept is the recipe; runs name themselves.")
        if repeated := [value for value, count in Counter(values).items() if count > 1]:
            raise ConfigurationError(f"--sweep {key} names {repeated[0]} twice: leave one out.")
        return cls(key, values)


@dataclass(frozen=True)
class Point:
    """One choice of values: a readable name, and the overrides that make it."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, in the order of its points, and the folder that holds them."""

    folder: Path
    points: tuple[Point, ...]
    runs: tuple[RunFolder, ...]


def make_sweep(file: Path, overrides: Sequence[str], swept: Sequence[str], count: int | None, runs: Path) -> Sweep:
    """The runs of a recipe at every point of a grid, or at `count` of them. Nothing is written.

    The sweep is named after the recipe and the hash of what was asked, or by `name=`.

    Raises:
        ConfigurationError: no such recipe, or an axis or an override that does not fit: every point's is listed.
    """
    naming = [text for text in overrides if text.startswith("name=")]
    common = [text for text in overrides if text not in naming]
    name = configured(file, naming)["name"]
    if not naming:
        name += "-sweep-" + _hash(chr(0).join([*sorted(common), "", *swept, str(count or "")]))
    folder = folder_named(name, runs)

    points = points_of([Axis.of(text) for text in swept], count)
    made: list[RunFolder] = []
    errors: dict[str, list[str]] = {}
    for point in points:
        try:
            made.append(make_run(file, [*common, *point.overrides, f"name={point.name}"], folder))
        except NemoRunError as error:
            errors.setdefault(str(error), []).append(point.name)
    if errors:
        raise ConfigurationError(by_point(errors, len(points)))
    _refuse_equals(points, made)
    return Sweep(folder, tuple(points), tuple(made))


def points_of(axes: Sequence[Axis], count: int | None = None) -> list[Point]:
    """Every point of the grid, the last axis fastest; or `count` of them, always the same, in the same order.

    Raises:
        ConfigurationError: a key on two axes, or too many points.
    """
    keys = [axis.key for axis in axes]
    if len(set(keys)) < len(keys):
        raise ConfigurationError(
            f"--sweep {Counter(keys).most_common(1)[0][0]} is given twice: list all its values once."
        )
    size = math.prod(len(axis.values) for axis in axes)
    chosen: Iterable[int] = range(size)
    if count is not None and count < size:
        chosen = sorted(random.Random(SEED).sample(range(size), count))
    elif size > MOST:
        raise ConfigurationError(f"the grid has {size:,} points: try some of them, with --sweep-random 20.")
    grid = [_values_at(number, axes) for number in chosen]
    names = [_name(axes, values) for values in grid]
    overrides = [tuple(f"{key}={value}" for key, value in zip(keys, values, strict=True)) for values in grid]
    taken = Counter(names)
    return [
        Point(name if taken[name] == 1 else f"{name}-{_hash(chr(0).join(given))}", given)
        for name, given in zip(names, overrides, strict=True)
    ]


def by_point(reasons: dict[str, list[str]], total: int) -> str:
    """Sentences with the names of the points that each is about, unless it is about all of them."""
    return listed([text if len(names) == total else f"{', '.join(names)}: {text}" for text, names in reasons.items()])


def _refuse_equals(points: Sequence[Point], runs: Sequence[RunFolder]) -> None:
    """Refuse two points that are the same training: 1e-4 and 0.0001, or a key that no stage reads."""
    first: dict[tuple[str, ...], str] = {}
    for point, run in zip(points, runs, strict=True):
        stages = tuple(fingerprint_of(stage, run) for stage in stages_of(run.recipe))
        if (other := first.setdefault(stages, point.name)) != point.name:
            raise ConfigurationError(f"{other} and {point.name} are the same run in every stage: leave one out.")


def _split(text: str) -> tuple[str, ...]:
    """Parts between the commas that stand outside brackets."""
    depths = itertools.accumulate(BRACKETS.get(character, 0) for character in text)
    cuts = [place for place, depth in enumerate(depths) if text[place] == "," and not depth]
    return tuple(text[start + 1 : stop].strip() for start, stop in itertools.pairwise([-1, *cuts, len(text)]))


def _values_at(number: int, axes: Sequence[Axis]) -> tuple[str, ...]:
    """The values of the grid's point of that number."""
    values: list[str] = []
    for axis in reversed(axes):
        number, place = divmod(number, len(axis.values))
        values.insert(0, axis.values[place])
    return tuple(values)


def _name(axes: Sequence[Axis], values: Sequence[str]) -> str:
    """`lr-2e-4_dim-8`: the shortest names of the keys, with what shells and NeMo take apart replaced."""
    parts = [f"{_short(axis.key, axes)}-{Path(value).name}" for axis, value in zip(axes, values, strict=True)]
    name = re.sub(r"[^\w.+-]+", "-", "_".join(parts), flags=re.ASCII).strip("-")
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{_hash(name)}"


def _short(key: str, axes: Sequence[Axis]) -> str:
    """The key's end that no other axis shares."""
    words = key.split(".")
    ends = [".".join(words[-count:]) for count in range(1, len(words) + 1)]
    return next((end for end in ends if sum(f".{axis.key}".endswith(f".{end}") for axis in axes) == 1), key)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
