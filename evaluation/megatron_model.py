"""A NeMo checkpoint in Megatron, at the layout of the processes that torchrun started; every rank makes each call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from modeling import cpu_backend, inference

# isort: split
# After the line above, which activates the CPU backend where there is no GPU: Megatron-core looks for CUDA on import.
from megatron.core import parallel_state
from megatron.core.transformer.moe.router import TopKRouter

from common.console import rank, say
from common.hf_tokenizer import open_tokenizer
from converters.lora import peft_settings
from converters.nemo_folder import WEIGHTS
from converters.nemo_reader import NemoReader
from converters.storage.checked_folder import ensure_safe
from data_prep.prepared import load_prepared
from evaluation.jobs import ScoreJob
from evaluation.scoring import LabelScores, LogitsFunction, decode_labels, save_scores
from modeling.expert_lora import GptOssLoRA
from modeling.layouts import Layout
from modeling.model_config import DTYPES
from modeling.precision import Precision
from pipeline.checkpoints import Parts

Item = TypeVar("Item")


def begin(layout: Layout) -> None:
    """Form the process groups of a layout from the processes that torchrun started."""
    if inference.ON_CPU:
        torch.set_num_threads(cpu_backend.threads_of_rank())
    inference.initialize(layout)


def load(parts: Parts, *, seq_length: int, precision: Precision) -> torch.nn.Module:
    """This rank's part of a model, with the adapter in it where there is one.

    Raises:
        CheckpointError: a weight is missing, or the adapter's settings are; or a file could run code.
    """
    for checkpoint in filter(None, (parts.weights, parts.adapter)):
        ensure_safe(checkpoint / WEIGHTS)  # Megatron's loader runs what a checkpoint names
    packed = NemoReader(parts.weights).packed
    settings = {"packed_experts": packed, "filled_by_checkpoint": True}
    model = inference.build_model(parts.config, seq_length=seq_length, dtype=DTYPES[precision], **settings)
    inference.load_weights(model, parts.weights)
    if parts.adapter:
        inference.load_adapter(model, _lora(parts.adapter), parts.adapter)
    return model


def tokenizer_of(parts: Parts) -> Any:
    """The tokenizer that a model was trained with."""
    return open_tokenizer(str(parts.tokenizer))


def score_split(job: ScoreJob, out: Path) -> None:
    """Write the label scores of every model to `out`, as `load_scores` reads them."""
    prepared = load_prepared(job.data)
    prompts, completions = [ticket.input for ticket in prepared.split(job.split)], list(prepared.completions.values())
    begin(job.layout)
    scores: dict[str, LabelScores] = {}
    for name, parts in job.systems.items():
        if rank() == 0:
            say(f"{name}: scoring {len(prompts):,} tickets in Megatron, {job.layout}")
        model = load(parts, seq_length=job.seq_length, precision=job.precision)
        scores[name] = score(model, tokenizer_of(parts), prompts, completions, job.batch_size)
        del model  # before the next one is built
    if rank() == 0:
        save_scores(out, scores)


def _lora(adapter: Path) -> GptOssLoRA:
    """The transform that an adapter was trained with, as its checkpoint records it."""
    settings = peft_settings(adapter)
    names = ("target_modules", "dim", "alpha", "expert_layers", "train_router")
    return GptOssLoRA(**{name: settings[name] for name in names if name in settings})


def logits_of(model: torch.nn.Module) -> LogitsFunction:
    """The model's forward pass, whose result every rank gets."""
    return partial(inference.logits, model)


def score(
    model: torch.nn.Module, tokenizer: Any, prompts: Sequence[str], completions: Sequence[str], batch_size: int
) -> LabelScores:
    """Label scores of all prompts, on every rank; each data-parallel rank computes its share."""
    own, whole = share_of(prompts)
    part = decode_labels(logits_of(model), tokenizer, own, completions, batch_size)
    columns = np.concatenate([part.log_probabilities, part.greedy[:, None]], axis=1)  # both fp64: indices stay exact
    joined = whole(columns)
    return LabelScores(joined[:, :-1], joined[:, -1].astype(np.int64))


def share_of(prompts: Sequence[Item]) -> tuple[list[Item], Callable[[np.ndarray], np.ndarray]]:
    """This data-parallel rank's prompts, and the function that makes all ranks' rows (N, …) of its own.

    Every rank gets equally many: expert parallelism exchanges tokens in each forward pass, so all must make it.
    """
    ranks, own = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    padded = [*prompts, *list(prompts[:1]) * (-len(prompts) % ranks)]

    def whole(rows: np.ndarray) -> np.ndarray:
        parts: list[Any] = [None] * ranks
        torch.distributed.all_gather_object(parts, rows, group=parallel_state.get_data_parallel_group())
        return np.stack(parts, axis=1).reshape(len(padded), *rows.shape[1:])[: len(prompts)]

    return padded[own::ranks], whole


@contextmanager
def counted_picks(model: torch.nn.Module, layers: int, experts: int) -> Iterator[torch.Tensor]:
    """Count how often each expert is picked in the block's forward passes; int64 (layers, experts), whole after it.

    Passes must hold no padding. With tensor parallelism each rank routes its part of the sequence.
    """
    counts = torch.zeros(layers, experts, dtype=torch.int64)

    def count(router: Any, arguments: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        counts[router.layer_number - 1] += output[1].reshape(-1, experts).sum(0).cpu()

    routers = [module for module in model.modules() if isinstance(module, TopKRouter)]
    hooks = [router.register_forward_hook(count) for router in routers]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
    summed = counts if inference.ON_CPU else counts.cuda()
    torch.distributed.all_reduce(summed)
    counts.copy_(summed)
