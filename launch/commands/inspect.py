"""`nemo-run inspect`: what fine-tuning did to a run's model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer


def inspect_run(
    run: Annotated[Path, typer.Argument(help="Run folder whose fine-tuning has finished.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; by default inspection in the run.")] = None,
) -> None:
    """What changed: weights by module, layer and expert, the routers' picks, losses, and answers side by side.

    Answers and picks are computed in Megatron at the run's layout, for what fine-tuning started from and for each kept
    checkpoint. Writes inspect.html and inspect.json.

    Example: nemo-run inspect runs/tickets
    """
    import json
    from dataclasses import asdict, replace

    from common import artifacts
    from common.progress import bars
    from common.torchrun import run_job
    from evaluation.inspection_page import write_html
    from evaluation.jobs import InspectJob
    from evaluation.weight_changes import changes
    from pipeline.checkpoints import base_of, exported_parts, kept_checkpoints, name_of, parts_of
    from pipeline.epochs import samples_an_epoch
    from pipeline.history import read_history
    from pipeline.run_folder import RunFolder

    started = time.perf_counter()
    opened = RunFolder.open(run)
    recipe, tuned = opened.recipe, exported_parts(run)
    out = out or run / "inspection"
    artifacts.ensure_replaceable(out)  # before the work
    start = base_of(opened)
    is_adapter = tuned.adapter is not None
    with bars() as progress:
        weights = tuned.adapter or tuned.weights
        matrix_changes = changes(start.weights, weights, start.config, is_adapter=is_adapter, progress=progress)
    kept = {name_of(path): parts_of(path) for path in kept_checkpoints(opened)}
    job = InspectJob(
        {name: parts.resolved() for name, parts in {"before": start, **kept}.items()},
        opened.data.resolve(),
        replace(recipe.layout, context=1),  # prompts are read whole
        recipe.data.seq_length,
        recipe.model.precision,
    )
    with run_job(job, job.layout.processes) as file:
        answered = json.loads(file.read_text(encoding="utf-8"))
    history = read_history(opened.finetune)
    steps_an_epoch = samples_an_epoch(recipe, opened.data) / recipe.data.global_batch_size
    weights = [
        {**asdict(each), "relative": each.relative, "effective_rank": each.effective_rank} for each in matrix_changes
    ]  # fmt: skip
    facts = {"run": str(run), "weights": weights, "history": history, "steps_an_epoch": steps_an_epoch, **answered}
    with artifacts.new_folder(out) as folder:
        (folder / "inspect.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_html(folder / "inspect.html", recipe.name, matrix_changes, answered, history, steps_an_epoch)
        artifacts.write_manifest(folder, "inspection", {"run": str(run), "checkpoints": list(job.systems)})
    print(f"wrote {out} in {time.perf_counter() - started:.1f} s; read {out / 'inspect.html'}")
