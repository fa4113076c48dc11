"""`nemo-run evaluate`: how well a run's models, a checkpoint, an exported folder or a server route the test tickets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer


def evaluate_model(
    model: Annotated[
        Path, typer.Argument(metavar="RUN|CHECKPOINT|HF_FOLDER", help="Run, NeMo checkpoint, or exported folder.")
    ],
    data: Annotated[Path | None, typer.Argument(help="Prepared folder; by default the run's own.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; by default evaluation-SPLIT in the run, or evaluation here.")
    ] = None,
    split: Annotated[str, typer.Option(help="training, validation or test.")] = "test",
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="OpenAI-compatible server of HF_FOLDER; key in OPENAI_API_KEY.")
    ] = None,
    served: Annotated[
        str | None, typer.Option("--model", help="Name of the served model; by default the only one, or adapter.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at a time to the server.")] = 16,
    precision: Annotated[
        float, typer.Option("--threshold-for-precision", help="Precision that routing without a person is to have.")
    ] = 0.95,
    coverage: Annotated[
        float, typer.Option("--threshold-for-coverage", help="Share of the tickets to route without a person.")
    ] = 0.8,
    sentence_model: Annotated[
        Path | None, typer.Option(help="Folder of an encoder, for the baseline of nearest sentences.")
    ] = None,
    tensor: Annotated[int | None, typer.Option("--tp", help="Tensor parallelism; by default the run's, or 1.")] = None,
    expert: Annotated[int | None, typer.Option("--ep", help="Expert parallelism; by default the run's, or 1.")] = None,
    pipeline: Annotated[int | None, typer.Option("--pp", help="Pipeline stages; by default the run's, or 1.")] = None,
    batch_size: Annotated[int, typer.Option(help="Tickets at a time.")] = 16,
) -> None:
    """Accuracy, F1, calibration, thresholds and label noise, with intervals, beside baselines: figures and a report.

    A run is evaluated before and after, in Megatron; a NeMo checkpoint in Megatron; an exported folder in transformers,
    or by the server at --endpoint.

    Example: nemo-run evaluate runs/tickets
    """
    from common import artifacts
    from common.errors import ConfigurationError
    from data_prep.prepared import load_prepared
    from evaluation import report, systems
    from evaluation.findings import Goal
    from pipeline.run_folder import is_run
    from serving.address import parse_address

    started = time.perf_counter()
    for name, value in (("precision", precision), ("coverage", coverage)):
        if not 0 < value <= 1:
            raise ConfigurationError(f"--threshold-for-{name} is {value}: give a share above 0 and up to 1.")
    if data is None and not is_run(model):
        raise ConfigurationError(f"name the prepared folder as well: nemo-run evaluate {model} DATA.")
    data = data or model / "data"
    out = out or (model / f"evaluation-{split}" if is_run(model) else Path("evaluation"))
    artifacts.ensure_replaceable(out)  # before the work
    prepared = load_prepared(data)
    address = parse_address(endpoint).url if endpoint else None  # without a password, since the report shows it
    if endpoint:
        models, notes = systems.by_endpoint(endpoint, model, prepared, split, served, concurrency)
    elif (model / "config.json").is_file():
        models, notes = systems.by_transformers(model, prepared, split, batch_size), []
    else:
        sizes = {"tensor": tensor, "expert": expert, "pipeline": pipeline}
        models, notes = systems.by_megatron(model, data, prepared, split, batch_size, sizes), []
    about = systems.about(model, data, address, notes)
    with artifacts.new_folder(out) as folder:
        goal = Goal(precision, coverage)
        findings = report.write_evaluation(
            folder, prepared, split, prepared.split(split), models, about, goal, sentence_model
        )
        artifacts.write_manifest(folder, "evaluation", about.inputs)
    print(report.console_table(findings))
    print(f"wrote {out} in {time.perf_counter() - started:.1f} s; read {out / 'report.html'}")
