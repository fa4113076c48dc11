"""The evaluate stage: the imported base and the tuned model on the test split, beside two baselines without them.

Both models run in Megatron, at the layout of the training, and are read from the checkpoints themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from rich.console import Console
from transformers import AutoTokenizer

import artifacts
from evaluation import baselines, report
from evaluation.parity import save_logits
from evaluation.prepared import Ticket, load_prepared
from evaluation.scoring import LogitsFunction, score_labels
from modeling import inference
from modeling.hf_config import GptOssConfig
from recipes.checkpoints import start_of, tuned_of
from recipes.console import rank, say
from recipes.pipeline import RunFolder

Details = dict[str, Any]


def compare(run: RunFolder) -> Details:
    """Evaluate, write `evaluation/` and return the macro-F1 of both models."""
    if inference.ON_CPU:
        torch.set_num_threads(1 if run.recipe.processes > 1 else 2)
    settings = run.recipe.evaluation
    prepared = load_prepared(run.data)
    tickets = prepared.test[: settings.max_tickets or None]
    labels = prepared.labels
    prompts = [ticket.input for ticket in tickets]
    completions = [prepared.completions[label] for label in labels]
    tokenizer = AutoTokenizer.from_pretrained(run.base / "context" / "nemo_tokenizer")
    inference.initialize(run.recipe.layout)
    predictions: dict[str, list[str]] = {}
    if rank() == 0:
        predictions["majority class"] = baselines.majority(prepared)[: len(tickets)]
        predictions["TF-IDF + logistic regression"] = baselines.tfidf(prepared)[: len(tickets)]
    scores: dict[str, np.ndarray] = {}
    tuned_logits: LogitsFunction | None = None
    for name, logits in (("base", _base(run)), ("tuned", _tuned(run))):
        scores[name] = _shared(
            lambda part, logits=logits: score_labels(logits, tokenizer, part, completions, settings.batch_size), prompts
        )
        predictions[name] = [labels[i] for i in scores[name].argmax(axis=1)]
        tuned_logits = logits
    assert tuned_logits is not None
    tokens = _longest(tokenizer, prompts, int(run.recipe.raw["data"].get("seq_length", 512)))
    logits_of_prompts = tuned_logits(tokens)
    details: Details = {}
    if rank() == 0:
        details = _write(run, tickets, predictions, scores, tokens, logits_of_prompts)
    torch.distributed.barrier()
    return details


def _shared(score: Callable[[list[str]], np.ndarray], prompts: list[str]) -> np.ndarray:
    """Scores of all prompts, (N, labels), each data-parallel rank doing its share.

    Every rank scores equally many: expert parallelism exchanges tokens in each forward pass, so all must make it.
    """
    ranks, own = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    padded = prompts + prompts[:1] * (-len(prompts) % ranks)
    parts: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(
        parts, score(padded[own::ranks]), group=parallel_state.get_data_parallel_group()
    )
    return np.stack(parts, axis=1).reshape(len(padded), -1)[: len(prompts)]


def _write(
    run: RunFolder,
    tickets: list[Ticket],
    predictions: dict[str, list[str]],
    scores: dict[str, np.ndarray],
    tokens: torch.Tensor,
    logits: torch.Tensor,
) -> Details:
    with artifacts.new_folder(run.evaluation) as folder:
        metrics = report.write_evaluation(folder, tickets, predictions, scores)
        save_logits(folder / "logits.safetensors", tokens, logits)
        artifacts.write_manifest(folder, "evaluation", {"data": str(run.data), "tuned": str(tuned_of(run))})
    console = Console(width=110)
    with console.capture() as capture:
        console.print(report.summary_table(metrics))
    say(capture.get().rstrip())
    base, tuned = metrics["base"].macro_f1, metrics["tuned"].macro_f1
    made = f"macro-F1 {base:.2f} → {tuned:.2f} on {len(tickets)} held-out tickets"
    return {"made": made, "macro_f1": {name: value.macro_f1 for name, value in metrics.items()}}


def _base(run: RunFolder) -> LogitsFunction:
    model = _model(run)
    inference.load_weights(model, run.base)
    return partial(inference.logits, model)


def _tuned(run: RunFolder) -> LogitsFunction:
    model = _model(run)
    if run.recipe.peft:
        inference.load_weights(model, start_of(run))
        inference.load_adapter(model, run.recipe.peft.build(), tuned_of(run))
    else:
        inference.load_weights(model, tuned_of(run))
    return partial(inference.logits, model)


def _model(run: RunFolder) -> torch.nn.Module:
    config = GptOssConfig.from_file(run.base / "context" / "hf_config.json")
    dtype = torch.float32 if run.recipe.model.precision == "fp32" else torch.bfloat16
    return inference.build_model(config, seq_length=run.recipe.data.seq_length, dtype=dtype)


def _longest(tokenizer: Any, prompts: list[str], limit: int, count: int = 4) -> torch.Tensor:
    """The longest held-out prompts cut to one length, (count, S): long enough to leave the sliding window."""
    rows = sorted((tokenizer.encode(prompt, add_special_tokens=False)[:limit] for prompt in prompts), key=len)[-count:]
    length = min(len(row) for row in rows)
    return torch.tensor([row[:length] for row in rows])
