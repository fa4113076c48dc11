"""`nemo-run launch recipes/gpt_oss_20b_lora.py preset=cpu` on a random checkpoint of real size, killed on its way.

The run is killed after its first checkpoint and launched again; its adapter leaves for PEFT, its merged model as MXFP4.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.measure import GIB
from pipeline.history import read_history
from verification.merged import worst_rounding
from verification.subject import Subject

ROOT = Path(__file__).parents[1]
RECIPE = "recipes/gpt_oss_20b_lora.py"
NEMO_RUN = (sys.executable, "-m", "launch.cli")


@dataclass(frozen=True)
class Proof:
    """What a run at real size gave.

    Attributes:
        losses: of each step, as the history has them.
        resumed: the step after which the second launch went on.
        untouched, changed: tensors of the export, a layer's counted as one, that equal the base bit by bit, or do not.
        rounding: largest error of an adapted weight against base + adapter, in steps of its format.
        adapter: tensors of the PEFT adapter.
        peak: highest memory of all processes together in bytes, mapped files included.
        seconds: of all.
    """

    losses: list[float]
    resumed: int
    untouched: int
    changed: int
    rounding: float
    adapter: int
    peak: int
    seconds: float

    def __str__(self) -> str:
        losses = (
            f"loss {self.losses[0]:.2f} → {self.losses[-1]:.2f} in {len(self.losses)} steps, resumed at {self.resumed}"
        )
        export = f"{self.untouched} tensors untouched, {self.changed} merged to {self.rounding:.2f} of a step"
        return f"{losses}; {export}; {self.peak / GIB:.1f} GiB, {self.seconds / 60:.0f} min"


def prove(subject: Subject, overrides: tuple[str, ...] = ()) -> Proof:
    """Launch, kill, launch again, export; print what the run prints.

    Raises:
        RuntimeError: a command failed, or the run went on from somewhere else than its checkpoint.
    """
    started, name = time.perf_counter(), "full"
    settings = ("preset=cpu", f"model.hf={subject.hf()}", f"data.source={subject.tickets}", f"name={name}", *overrides)
    launch = ("launch", RECIPE, *settings, "--runs", str(subject.folder / "runs"))
    run = subject.folder / "runs" / name
    shutil.rmtree(run, ignore_errors=True)
    first = _Command(subject.folder / "first.log", launch)
    first.wait(until=lambda: _checkpoints(run))
    second = _Command(subject.folder / "second.log", launch)
    second.wait()
    resumed = re.search(r"resumed at step (\d+)", second.output)
    if resumed is None:
        raise RuntimeError(f"the second launch did not go on from a checkpoint:\n{second.output[-3000:]}")
    peft = subject.folder / "peft"
    shutil.rmtree(peft, ignore_errors=True)
    converted = _Command(subject.folder / "adapter.log", ("convert", "adapter", str(run), str(peft)))
    converted.wait()
    untouched, changed = _against_base(subject, run)
    return Proof(
        losses=[row["loss"] for row in read_history(run / "finetune") if "loss" in row],
        resumed=int(resumed[1]),
        untouched=untouched,
        changed=changed,
        rounding=worst_rounding(subject.hf(), peft, run / "exported"),
        adapter=_tensors(peft),
        peak=max(first.peak, second.peak, converted.peak),
        seconds=time.perf_counter() - started,
    )


class _Command:
    """A nemo-run command, its output, and the highest memory of it and of all processes below it."""

    def __init__(self, log: Path, arguments: tuple[str, ...]) -> None:
        self.name, self.peak, self.output = arguments[0], 0, ""
        self._log, environment = log, os.environ | {"PYTHONPATH": str(ROOT)}
        with log.open("w") as file:
            self._process = psutil.Popen(
                [*NEMO_RUN, *arguments], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
            )

    def wait(self, until: Callable[[], object] = lambda: False) -> None:
        """To its end; or kill all of it as soon as `until()` is true."""
        stopped = False
        try:
            while self._process.poll() is None and not stopped:
                time.sleep(2)  # twice a second, reading which pages are in memory took a third of a core
                self.peak = max(self.peak, sum(map(_memory, self._all())))
                self._read()
                stopped = bool(until())
        finally:
            for process in self._all():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()
        self._read()
        if self._process.returncode and not stopped:
            raise RuntimeError(f"nemo-run {self.name} failed:\n{self.output[-3000:]}")

    def _all(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return [self._process, *self._process.children(recursive=True)]
        return []

    def _read(self) -> None:
        before, self.output = len(self.output), self._log.read_text(encoding="utf-8", errors="replace")
        print(self.output[before:], end="", flush=True)


def _memory(process: psutil.Process) -> int:
    """Bytes of a process, shared pages divided among those that share them."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return process.memory_full_info().pss
    return 0


def _checkpoints(run: Path) -> list[Path]:
    return [path for path in (run / "finetune").glob("**/*-last") if path.is_dir()]


def _against_base(subject: Subject, run: Path) -> tuple[int, int]:
    """Tensors of the export that equal the base, and that do not."""
    from converters.verify import compare_checkpoints

    report = compare_checkpoints(subject.hf(), run / "exported")
    return report.equal, len(report.different)


def _tensors(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return len(list(file.keys()))
