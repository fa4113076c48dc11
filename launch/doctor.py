"""What this machine can do, and what each recipe would use of it or lacks: by the functions that preflight asks."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

from common.errors import ConfigurationError
from common.repository import REPOSITORY
from evaluation.jobs import KernelReport
from launch.estimates import refusal_of
from launch.machine import obstacles_anywhere, obstacles_here
from modeling.attention import Machine, attention_backend, in_words
from modeling.precision import Precision
from pipeline.loading import load, presets_of
from planning.memory import memory_of
from recipes.schema.recipe import Recipe, plan_of

# Those whose absence or version decides whether training starts; constraints.txt has the reasons.
NEEDED = ("torch", "nemo_toolkit", "megatron-core", "nemo_run", "transformers", "numpy", "numba", "safetensors")
BELOW = {"numpy": Version("2")}
# Of the spread of the logits, of the norm of a gradient: bf16 keeps eight bits, and layers add their errors up.
TOLERANCE: dict[Precision, float] = {"bf16": 5e-2, "fp32": 1e-3}


@dataclass(frozen=True)
class Line:
    """One fact: what it is about, what there is, and whether training can do with it."""

    about: str
    text: str
    good: bool = True


def installation() -> Iterator[Line]:
    """Versions of what training loads."""
    yield Line("Python", platform.python_version())
    for name in NEEDED:
        try:
            installed = version(name)
        except PackageNotFoundError:
            yield Line(
                name, "missing: pip install -e '.[nemo]' -c constraints.txt, or a bundle (make bundle)", good=False
            )
            continue
        limit = BELOW.get(name)
        good = limit is None or Version(installed) < limit
        yield Line(name, installed if good else f"{installed}: NeMo needs one below {limit}", good)


def device(machine: Machine) -> Iterator[Line]:
    """The GPUs, and the attention that they have for each kind of training."""
    if machine.capability is None:
        yield Line("device", "CPU: the rehearsal trains here, gloo between processes")
        return
    import torch

    names = ", ".join(sorted({torch.cuda.get_device_name(gpu) for gpu in range(machine.gpus)}))
    yield Line("device", f"{machine.gpus} × {names}, {machine.gpu_memory / 1e9:.0f} GB each; {machine}")
    kinds: tuple[tuple[str, Precision, bool], ...] = (
        ("bf16, packed", "bf16", True), ("bf16", "bf16", False), ("fp32", "fp32", False),
    )  # fmt: skip
    for name, precision, packed in kinds:
        try:
            backend = attention_backend(machine, packed=packed, precision=precision)
            yield Line(f"attention, {name}", f"{in_words(backend)}, with sinks")
        except ConfigurationError as error:
            yield Line(f"attention, {name}", str(error), good=False)


def recipes(machine: Machine) -> Iterator[Line]:
    """For each shipped recipe and preset, what it would use here, or the first thing that it lacks."""
    for file in sorted((REPOSITORY / "recipes").glob("gpt_oss_*.py")):
        for preset in ("", *presets_of(file)):
            recipe = load(file, [f"preset={preset}"] if preset else [])
            name = f"{file.stem} {preset}".rstrip()
            lacks = next(_lacks(recipe, machine), None)
            yield Line(name, lacks or _uses(recipe, machine), good=lacks is None)


def _lacks(recipe: Recipe, machine: Machine) -> Iterator[str]:
    yield from obstacles_anywhere(recipe)
    if recipe.model.toy:
        return
    yield from obstacles_here(recipe, machine)
    if recipe.nodes > 1:
        yield f"it trains on {recipe.nodes} nodes: launch it with a cluster profile (clusters/)."
    if machine.capability is not None:
        yield from refusal_of(recipe, machine.gpu_memory)


def _counted(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{plural if number > 1 else ''}"


def _uses(recipe: Recipe, machine: Machine) -> str:
    plan = plan_of(recipe)
    if recipe.model.toy or plan is None or machine.capability is None:
        return f"{_counted(recipe.processes, 'process')}, {recipe.model.precision}"
    memory = memory_of(plan, recipe.layout, recipe.processes, machine.gpu_memory).total / 1e9
    backend = attention_backend(
        machine, packed=recipe.data.packed, precision=recipe.model.precision, context=recipe.layout.context
    )
    packed = ", packed" if recipe.data.packed else ""
    training = f"{_counted(recipe.processes, 'GPU')}, {recipe.layout}, {recipe.model.precision}{packed}"
    return f"{training}, {in_words(backend)}, {memory:.0f} GB a GPU"


def kernels(report: KernelReport, precision: Precision) -> Iterator[Line]:
    """What the check of the kernels gave, against transformers in fp32."""
    most = TOLERANCE[precision]
    yield Line("logits", f"{report.logits:.1e} of their spread, at most {most:g}", report.logits <= most)
    yield Line("gradients", f"{report.gradients:.1e} of their norm, at most {most:g}", report.gradients <= most)
    if report.packed is not None:
        yield Line("packed and alone", f"{report.packed:.1e} of the spread, at most {most:g}", report.packed <= most)
    figures = [f"{report.seconds * 1e3:.1f} ms", f"{report.tokens_per_second:,.0f} tokens/s through the timed layers"]
    figures += [f"{report.memory_gb:.1f} GB"] if report.memory_gb else []
    figures += [f"MFU {report.mfu:.0%}"] if report.mfu is not None else []
    yield Line("a LoRA step", ", ".join(figures))


def card(machine_name: str, lines: list[Line], report: KernelReport | None) -> str:
    """The verification card of this machine, as YAML: what was run, what was expected and found, and when."""
    items: list[dict[str, Any]] = [
        {"item": line.about, "status": "verified" if line.good else "failed", "found": line.text} for line in lines
    ]
    stated = {"machine": machine_name, "command": "nemo-run doctor", "date": datetime.now(UTC).strftime("%Y-%m-%d")}
    return yaml.safe_dump(stated | {"kernels": vars(report) if report else None, "items": items}, sort_keys=False)


def write_card(file: Path, machine_name: str, lines: list[Line], report: KernelReport | None) -> None:
    """Write the card."""
    file.write_text(card(machine_name, lines, report), encoding="utf-8")
