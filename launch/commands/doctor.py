"""`nemo-run doctor`: what this machine can do, before anything is trained on it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from launch.doctor import Line


def examine(
    kernels: Annotated[
        bool | None, typer.Option(help="Run the kernels, forward and backward; by default where there is a GPU.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Whose first layers are timed: a known model or a config.json.")
    ] = "gpt-oss-20b",
    card: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what was found as a verification card.")
    ] = None,
) -> None:
    """What is installed, what the GPUs can do, and what each recipe would use here or lacks.

    Exit status 1 where training cannot start, or where a kernel gives wrong numbers.

    On a GPU every kernel that the recipes use runs forward and backward, against transformers at a small size, then at
    the model's own shape, timed.

    Example: nemo-run doctor --card this-machine.yaml
    """
    import json
    import platform

    from common.errors import LaunchError
    from common.fields import from_tree
    from common.torchrun import run_job
    from evaluation.jobs import KernelJob, KernelReport
    from launch import doctor
    from modeling.attention import this_machine

    started = time.perf_counter()
    machine = this_machine()
    installed = list(doctor.installation())
    _show("installed", installed)
    if not all(line.good for line in installed):
        raise LaunchError(
            "training cannot start here: install what is missing (above), or use an image of containers/."
        )
    lines = [*installed, *_shown("device", list(doctor.device(machine)))]
    lines += _shown("recipes", list(doctor.recipes(machine)))
    report = None
    if kernels if kernels is not None else machine.capability is not None:
        precision = "fp32" if machine.capability is None else "bf16"
        packs = machine.capability is not None and _good(lines, "attention, bf16, packed")
        with run_job(KernelJob(precision, packs, model), 1) as file:
            report = from_tree(KernelReport, json.loads(file.read_text()), "the kernels' report")
        lines += _shown(f"kernels, {precision}", list(doctor.kernels(report, precision)))
    if card:
        name = "CPU" if machine.capability is None else lines[len(installed)].text
        doctor.write_card(card, f"{name}; {platform.platform()}", lines, report)
        print(f"wrote {card}")
    print(f"{time.perf_counter() - started:.1f} s")
    wrong = [
        line.about for line in lines if not line.good and line.about in ("logits", "gradients", "packed and alone")
    ]
    if wrong:
        raise LaunchError(f"kernels give wrong numbers ({', '.join(wrong)}): do not train here; send the card in.")


def _good(lines: list[Line], about: str) -> bool:
    return any(line.about == about and line.good for line in lines)


def _shown(title: str, lines: list[Line]) -> list[Line]:
    _show(title, lines)
    return lines


def _show(title: str, lines: list[Line]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for line in lines:
        table.add_row(line.about, line.text, style="" if line.good else "yellow")
    Console(width=None if Console().is_terminal else 140).print(table)
