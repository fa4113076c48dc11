"""The stage `evaluate`: the model before fine-tuning and after it on the test split, beside baselines without them.

Both models run in Megatron, at the layout of the training, and are read from the checkpoints themselves.
"""

from __future__ import annotations

from typing import Any

import torch

from common import artifacts
from common.console import rank, say
from data_prep.prepared import load_prepared, load_routing
from evaluation import megatron_model, report
from evaluation.findings import Goal
from evaluation.megatron_model import begin, load, tokenizer_of
from evaluation.parity import kept_positions, save_logits
from evaluation.predictions import Predictions
from evaluation.trainings import contributions, histories_of
from modeling import inference
from pipeline.checkpoints import base_of, exported_parts, tuned_of
from pipeline.run_folder import RECIPE_FILE, RunFolder
from pipeline.stage import Details


def evaluate_models(run: RunFolder) -> Details:
    """Evaluate base, tuned model and baselines on the test split; conversations have no labels to score."""
    if not load_routing(run.data).labels:
        if rank() == 0:
            with artifacts.new_folder(run.evaluation) as folder:
                artifacts.write_manifest(folder, "evaluation", {"data": str(run.data)})
        return Details("nothing: conversations have no labels to score; see the validation loss of fine-tuning")
    settings, recipe = run.recipe.evaluation, run.recipe
    prepared = load_prepared(run.data)
    tickets = prepared.test[: settings.max_tickets or None]
    prompts = [ticket.input for ticket in tickets]
    completions = [prepared.completions[label] for label in prepared.labels]
    tokenizer = tokenizer_of(base_of(run))
    begin(recipe.layout)
    models: dict[str, Predictions] = {}
    logits = torch.empty(0)
    tokens = _longest(tokenizer, prompts, recipe.data.seq_length)
    positions = kept_positions(tokens)
    for name, parts in (("base", base_of(run)), ("tuned", exported_parts(run.path))):
        model = load(parts, seq_length=recipe.data.seq_length, precision=recipe.model.precision)
        scores = megatron_model.score(model, tokenizer, prompts, completions, settings.batch_size)
        models[name] = Predictions.of_model(prepared.labels, scores)
        logits = inference.logits(model, tokens, positions)  # of the tuned model, which comes last
        del model  # before the next one is built
    if rank() != 0:
        return Details()
    about = report.About(
        inputs={"run": str(run.path), "data": str(run.data), "tuned": str(tuned_of(run))},
        configuration=(run.path / RECIPE_FILE).read_text(encoding="utf-8"),
        histories=histories_of(run),
        notes=contributions(run),
    )
    with artifacts.new_folder(run.evaluation) as folder:
        findings = report.write_evaluation(folder, prepared, "test", tickets, models, about, Goal())
        save_logits(folder / "logits.safetensors", tokens, positions, logits)
        artifacts.write_manifest(folder, "evaluation", about.inputs)
    say(report.console_table(findings))
    macro_f1 = {name: system.metrics.macro_f1 for name, system in findings.systems.items()}
    made = f"macro-F1 {macro_f1['base']:.2f} → {macro_f1['tuned']:.2f} on {len(tickets)} held-out tickets"
    return Details(made, macro_f1=macro_f1)


def _longest(tokenizer: Any, prompts: list[str], limit: int, count: int = 4) -> torch.Tensor:
    """The longest held-out prompts cut to one length, (count, S): long enough to leave the sliding window."""
    rows = sorted((tokenizer.encode(prompt, add_special_tokens=False)[:limit] for prompt in prompts), key=len)[-count:]
    length = min(len(row) for row in rows)
    return torch.tensor([row[:length] for row in rows])
