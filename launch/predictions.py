"""The three ways to a model's predictions: in Megatron, in transformers, and by a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from errors import ConfigurationError
from evaluation.predictions import Predictions
from evaluation.prepared import Prepared
from evaluation.report import About, read_history
from launch.bars import bar
from modeling.layouts import Layout
from recipes.pipeline import RECIPE_FILE, RunFolder

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

    from evaluation.scoring import load_scores
    from launch.torchrun import processes_of, run_job
    from modeling.layouts import violations
    from recipes.checkpoints import base_of, exported_parts, parts_of, run_above

    is_run = (model / RECIPE_FILE).is_file()
    run = RunFolder.open(model) if is_run else run_above(model)
    parts = {"base": base_of(run), "tuned": exported_parts(model)} if is_run and run else {model.name: parts_of(model)}
    own = run.recipe.layout if run else Layout()
    layout = Layout(*(sizes[name] or getattr(own, name) for name in ("tensor", "expert", "pipeline")))
    processes = processes_of(layout)
    config = next(iter(parts.values())).config()
    if problems := violations(config, layout, processes):
        raise ConfigurationError(f"{layout} is impossible for this model: {problems[0]}.")
    with run_job(
        "recipes.prediction.predict",
        processes,
        systems={name: each.paths() for name, each in parts.items()},
        data=str(data.resolve()),
        split=split,
        batch_size=batch_size,
        layout=[layout.tensor, layout.expert, layout.pipeline],
        seq_length=run.recipe.data.seq_length if run else SEQ_LENGTH,
        precision=run.recipe.model.precision if run else ("bf16" if torch.cuda.is_available() else "fp32"),
    ) as file:
        found = load_scores(file)
    return {name: Predictions.of_model(prepared.labels, scores) for name, scores in found.items()}


def by_transformers(folder: Path, prepared: Prepared, split: str, batch_size: int) -> dict[str, Predictions]:
    """An exported folder in transformers.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    from evaluation.scoring import decode_labels
    from evaluation.transformers_model import load

    logits, tokenizer = load(folder)
    prompts = [ticket.input for ticket in prepared.split(split)]
    with bar("tickets") as progress:
        scores = decode_labels(logits, tokenizer, prompts, list(prepared.completions.values()), batch_size, progress)
    return {folder.name: Predictions.of_model(prepared.labels, scores)}


def by_endpoint(url: str, folder: Path, prepared: Prepared, split: str) -> tuple[dict[str, Predictions], list[str]]:
    """The model of a server; `folder` has its tokenizer. Returns the predictions and what the server cannot give.

    Raises:
        LaunchError: the server cannot be reached, or does not constrain its answers. CheckpointError: no tokenizer.
    """
    from evaluation.endpoint import Endpoint, RefusedError, at_once, decode_by
    from evaluation.transformers_model import load_tokenizer

    endpoint = Endpoint(url)
    tokenizer = load_tokenizer(_tokenizer_folder(folder))
    prompts = [ticket.input for ticket in prepared.split(split)]
    with bar("tickets") as progress:
        try:
            scores = decode_by(endpoint, tokenizer, prompts, list(prepared.completions.values()), progress)
            return {endpoint.model: Predictions.of_model(prepared.labels, scores)}, []
        except RefusedError as refused:
            note = f"{refused} Answers are the server's structured output: no confidence, no calibration."
        answers = prepared.routing.answers
        most = max(len(tokenizer.encode(answer, add_special_tokens=False)) for answer in prepared.completions.values())

        def ask(prompt: str) -> tuple[int, bool]:
            label = answers[endpoint.choose(prompt, list(answers)).label]
            return prepared.labels.index(label), endpoint.free_answer(prompt, most) in answers

        found = np.array(list(at_once(ask, prompts, progress)))
    return {endpoint.model: Predictions(prepared.labels, found[:, 0], valid=found[:, 1].astype(bool))}, [note]


def about(model: Path, data: Path, endpoint: str | None, notes: list[str]) -> About:
    """What the report says of a model besides its figures."""
    inputs: dict[str, Any] = {"model": str(model), "data": str(data), "endpoint": endpoint}
    if (model / RECIPE_FILE).is_file():
        configuration = (model / RECIPE_FILE).read_text(encoding="utf-8")
        return About(inputs, configuration, {"fine-tuning": read_history(model / "finetune")}, notes)
    file = model / "config.json"
    return About(inputs, file.read_text(encoding="utf-8") if file.is_file() else "", notes=notes)


def _tokenizer_folder(model: Path) -> Path:
    from recipes.checkpoints import base_of

    return base_of(RunFolder.open(model)).tokenizer() if (model / RECIPE_FILE).is_file() else model
