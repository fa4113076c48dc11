"""The three ways to a model's predictions: in Megatron, in transformers, and by a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import ConfigurationError
from common.progress import bars
from common.torchrun import run_job
from data_prep.prepared import Prepared
from evaluation.jobs import ScoreJob
from evaluation.predictions import Predictions
from evaluation.report import About
from evaluation.scoring import load_scores
from evaluation.trainings import contributions, histories_of
from modeling.layouts import Layout, violations
from pipeline.checkpoints import base_of, exported_parts, parts_of
from pipeline.run_folder import RECIPE_FILE, RunFolder, is_run, run_above
from serving.endpoint import AT_ONCE, Endpoint, RefusedError

SEQ_LENGTH = 4096


def by_megatron(
    model: Path, data: Path, prepared: Prepared, split: str, batch_size: int, sizes: Mapping[str, int | None]
) -> dict[str, Predictions]:
    """A run's base and tuned model, or one NeMo checkpoint, in Megatron.

    Args:
        sizes: of the layout's axes by their names; None for the run's own.
    Raises:
        ConfigurationError: the model cannot be cut into this layout. LaunchError: a process failed.
    """
    import torch

    run = RunFolder.open(model) if is_run(model) else run_above(model)
    if run and is_run(model):
        parts = {"base": base_of(run), "tuned": exported_parts(model)}
    else:
        parts = {model.name: parts_of(model)}
    own = run.recipe.layout if run else Layout()
    # prompts are read whole: no context parallelism
    layout = Layout(**{name: size or getattr(own, name) for name, size in sizes.items()})
    config = next(iter(parts.values())).config
    if problems := violations(config, layout, layout.processes):
        raise ConfigurationError(f"{layout} is impossible for this model: {problems[0]}.")
    job = ScoreJob(
        {name: each.resolved() for name, each in parts.items()},
        data.resolve(),
        layout,
        run.recipe.data.seq_length if run else SEQ_LENGTH,
        run.recipe.model.precision if run else ("bf16" if torch.cuda.is_available() else "fp32"),
        split,
        batch_size,
    )
    with run_job(job, layout.processes) as file:
        scores = load_scores(file)
    return {name: Predictions.of_model(prepared.labels, each) for name, each in scores.items()}


def by_transformers(folder: Path, prepared: Prepared, split: str, batch_size: int) -> dict[str, Predictions]:
    """An exported folder in transformers.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    from evaluation.scoring import decode_labels
    from evaluation.transformers_model import load

    logits, tokenizer = load(folder)
    prompts = [ticket.input for ticket in prepared.split(split)]
    with bars() as progress:
        scores = decode_labels(logits, tokenizer, prompts, list(prepared.completions.values()), batch_size, progress)
    return {folder.name: Predictions.of_model(prepared.labels, scores)}


def by_endpoint(
    url: str,
    folder: Path,
    prepared: Prepared,
    split: str,
    model: str | None = None,
    concurrency: int = AT_ONCE,
) -> tuple[dict[str, Predictions], list[str]]:
    """The model of a server; `folder` has its tokenizer. Returns the predictions and what the server cannot give.

    Raises:
        LaunchError: the server cannot be reached, or does not constrain its answers. CheckpointError: no tokenizer.
    """
    from evaluation.served_model import choose_by, decode_by
    from evaluation.transformers_model import load_tokenizer

    tokenizer = load_tokenizer(_tokenizer_folder(folder))
    prompts = [ticket.input for ticket in prepared.split(split)]
    with bars() as progress, Endpoint(url, model=model, concurrency=concurrency) as endpoint:
        try:
            scores = decode_by(endpoint, tokenizer, prompts, list(prepared.completions.values()), progress)
            return {endpoint.model: Predictions.of_model(prepared.labels, scores)}, []
        except RefusedError as refused:
            note = f"{refused} Answers are the server's structured output: no confidence, no calibration."
        answers = prepared.routing.answers
        most = max(len(tokenizer.encode(answer, add_special_tokens=False)) for answer in prepared.completions.values())
        chosen, free = choose_by(endpoint, prompts, list(answers), most, progress)
        name = endpoint.model
    best = np.array([prepared.labels.index(answers[answer]) for answer in chosen])
    valid = np.array([answer in answers for answer in free])
    return {name: Predictions(prepared.labels, best, valid=valid)}, [note]


def about(model: Path, data: Path, endpoint: str | None, notes: list[str]) -> About:
    """The report's context of a model: inputs, configuration, history and notes."""
    inputs: dict[str, Any] = {"model": str(model), "data": str(data), "endpoint": endpoint}
    if is_run(model):
        configuration, run = (model / RECIPE_FILE).read_text(encoding="utf-8"), RunFolder.open(model)
        return About(inputs, configuration, histories_of(run), [*contributions(run), *notes])
    file = model / "config.json"
    return About(inputs, file.read_text(encoding="utf-8") if file.is_file() else "", notes=notes)


def _tokenizer_folder(model: Path) -> Path:
    return base_of(RunFolder.open(model)).tokenizer if is_run(model) else model
