"""`nemo-run evaluate`: how well a run's models, or an exported folder, route the test tickets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="RUN|HF_FOLDER", help="Run folder, or an exported folder.")],
    data: Annotated[Path | None, typer.Argument(help="Prepared folder; by default the run's own.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.json and predictions.jsonl.")] = None,
    batch_size: Annotated[int, typer.Option(help="Tickets at a time.")] = 16,
) -> None:
    """Micro- and macro-F1 on held-out tickets, beside the majority class and TF-IDF + logistic regression.

    Example: nemo-run evaluate runs/gpt_oss_tiny_lora
    """
    from rich.console import Console

    import artifacts
    from errors import ConfigurationError
    from evaluation import baselines, report
    from evaluation.prepared import load_prepared
    from evaluation.scoring import score_labels
    from evaluation.transformers_model import load

    started = time.perf_counter()
    if (model / "recipe.yaml").is_file():
        data, out, model = data or model / "data", out or model / "evaluation-export", model / "exported"
    if data is None:
        raise ConfigurationError("name the prepared folder as well: nemo-run evaluate HF_FOLDER DATA.")
    prepared = load_prepared(data)
    logits, tokenizer = load(model)
    prompts = [ticket.input for ticket in prepared.test]
    scores = score_labels(logits, tokenizer, prompts, list(prepared.completions.values()), batch_size)
    predictions = {
        "majority class": baselines.majority(prepared),
        "TF-IDF + logistic regression": baselines.tfidf(prepared),
        str(model): [prepared.labels[i] for i in scores.argmax(axis=1)],
    }
    out = out or Path("evaluation")
    with artifacts.new_folder(out) as folder:
        metrics = report.write_evaluation(folder, prepared.test, predictions, {str(model): scores})
        artifacts.write_manifest(folder, "evaluation", {"model": str(model), "data": str(data)})
    Console().print(report.summary_table(metrics))
    print(f"wrote {out} in {time.perf_counter() - started:.1f} s")
