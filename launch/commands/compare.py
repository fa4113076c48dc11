"""`nemo-run compare`: what settings did, from the folders of runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer


def compare_runs(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…|SWEEP", help="Run folders, or those of a sweep.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; by default comparison in the sweep, or here.")
    ] = None,
) -> None:
    """Runs side by side: settings that differ, losses, macro-F1 with paired tests, weights, tokens, time and memory.

    Reads run folders only, on any machine. Writes comparison.html and comparison.csv.

    Example: nemo-run compare runs/before runs/after
    """
    from common import artifacts
    from common.errors import ConfigurationError
    from common.progress import bars
    from evaluation.run_comparison import RunComparison, console_table
    from evaluation.run_comparison_page import write_comparison
    from evaluation.run_figures import read_run
    from pipeline.run_folder import is_run
    from pipeline.sweep_folder import is_sweep, runs_of_sweep

    started = time.perf_counter()
    if others := [path for path in runs if not is_sweep(path) and not is_run(path)]:
        raise ConfigurationError(f"{others[0]} is the folder of no run and of no sweep: name some of those in runs.")
    folders = [path for given in runs for path in (runs_of_sweep(given) if is_sweep(given) else [given])]
    if len({path.resolve() for path in folders}) < max(2, len(folders)):
        raise ConfigurationError(
            "there is nothing to compare: name two run folders or more, each once, or a sweep of several."
        )
    out = out or (runs[0] if len(runs) == 1 else Path()) / "comparison"
    artifacts.ensure_replaceable(out)  # before the work
    names = [path.resolve().name for path in folders]
    alike = {name for name in names if names.count(name) > 1}
    with bars() as progress:
        read = [
            read_run(path, str(path) if name in alike else name, progress)
            for path, name in zip(folders, names, strict=True)
        ]
    comparison = RunComparison(read)
    with artifacts.new_folder(out) as folder:
        write_comparison(folder, comparison)
    print(console_table(comparison))
    for note in comparison.notes:
        print(note)
    print(f"wrote {out} in {time.perf_counter() - started:.1f} s; read {out / 'comparison.html'}")
