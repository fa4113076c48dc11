"""Answers and expert picks of a run's models, before fine-tuning and at each kept checkpoint.

For the processes of one torchrun, at any layout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.console import rank, say
from data_prep.prepared import Ticket, load_prepared
from evaluation import megatron_model
from evaluation.jobs import InspectJob
from evaluation.megatron_model import begin, load, tokenizer_of
from evaluation.scoring import LogitsFunction
from modeling import inference
from modeling.hf_config import GptOssConfig

ASKED, ROUTED = 6, 16
"""Tickets that are answered side by side, and tickets whose tokens' experts are counted."""


def inspect_models(job: InspectJob, out: Path) -> None:
    """Write to `out`, as JSON, the tickets that were asked and what each model made of them."""
    prepared = load_prepared(job.data)
    asked = _of_all_labels(prepared.test, ASKED)
    completions = list(prepared.completions.values())
    begin(job.layout)
    answers = {}
    for name, parts in job.systems.items():
        if rank() == 0:
            say(f"{name}: answering in Megatron, {job.layout}")
        model, tokenizer = load(parts, seq_length=job.seq_length, precision=job.precision), tokenizer_of(parts)
        prompts = [ticket.input for ticket in asked]
        scores = megatron_model.score(model, tokenizer, prompts, completions, batch_size=ASKED)
        most = max(len(tokenizer.encode(completion, add_special_tokens=False)) for completion in completions)
        free = _free_answers(megatron_model.logits_of(model), tokenizer, prompts, most)
        routed = [tokenizer.encode(ticket.input, add_special_tokens=False) for ticket in prepared.test[:ROUTED]]
        answers[name] = {
            "predictions": [prepared.labels[i] for i in scores.best],
            "probabilities": scores.probabilities.max(axis=1).tolist(),
            "free_answers": free,
            "picks": _picks(model, parts.config, routed, multiple=job.layout.tensor).tolist(),
        }
        del model  # before the next one is built
    if rank() == 0:
        tickets = [{"id": t.id, "label": t.label, "language": t.language, "text": t.text} for t in asked]
        out.write_text(json.dumps({"tickets": tickets, "systems": answers}, ensure_ascii=False), encoding="utf-8")


def _of_all_labels(tickets: Sequence[Ticket], count: int) -> list[Ticket]:
    """The first tickets of different labels, the same ones at every call."""
    first: dict[str, Ticket] = {}
    for ticket in tickets:
        first.setdefault(ticket.label, ticket)
    return list(first.values())[:count]


def _picks(model: torch.nn.Module, config: GptOssConfig, prompts: list[list[int]], multiple: int) -> torch.Tensor:
    """How often each layer's router picks each expert over the tokens of the prompts, (layers, experts).

    Each prompt goes alone, cut to a multiple of TP: padding would be counted.
    """
    own, _ = megatron_model.share_of(prompts)
    with megatron_model.counted_picks(model, config.num_layers, config.num_experts) as counts:
        for prompt in own:
            inference.logits(model, torch.tensor([prompt[: len(prompt) // multiple * multiple]]))
    return counts


def _free_answers(logits: LogitsFunction, tokenizer: Any, prompts: Sequence[str], most: int) -> list[str]:
    """Greedy answers without any constraint, in at most so many tokens."""
    starts = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    end = tokenizer.eos_token_id
    while any(len(answer) < most and answer[-1:] != [end] for answer in answers):
        rows = [start + answer for start, answer in zip(starts, answers, strict=True)]
        width = max(len(row) for row in rows)
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        positions = torch.tensor([[len(row) - 1] for row in rows])
        for answer, token in zip(answers, logits(tokens, positions)[:, 0].argmax(-1).tolist(), strict=True):
            if len(answer) < most and answer[-1:] != [end]:
                answer.append(token)
    return [tokenizer.decode(answer) for answer in answers]
