"""Memory of one GPU, or of a CPU, in serving: weights as they are stored, and the cache of keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import LaunchError
from modeling.hf_config import FULL, GptOssConfig
from modeling.precision import BYTES, Precision

TICKETS = 16
"""Sequences whose cache is to fit at the full context: what `route` sends at a time."""
UTILIZATION = 0.9
"""Share of a GPU's memory that vLLM takes for itself, its default."""
RESERVE = 3 * 2**30
"""CUDA context, NCCL, activations of a step and its graphs, which vLLM takes from its share."""


@dataclass(frozen=True)
class ServingPlan:
    """How a model is served.

    Attributes:
        tensor: GPUs of tensor parallelism.
        context: tokens of a prompt and its answer.
        weights: bytes of all weights.
        cache: bytes that the keys and values of `TICKETS` sequences of `context` tokens take, on all GPUs together.
    """

    tensor: int
    context: int
    weights: int
    cache: int


def cache_bytes(config: GptOssConfig, context: int, precision: Precision = "bf16") -> int:
    """Keys and values of one sequence: every token's in layers of full attention, the window's in the others."""
    token = 2 * config.num_groups * config.head_dim * BYTES[precision]
    tokens = [context if kind == FULL else min(context, config.sliding_window) for kind in config.layer_types]
    return token * sum(tokens)


def plan_serving(
    config: GptOssConfig, weights: int, context: int, gpus: int, memory: int | None, precision: Precision = "bf16"
) -> ServingPlan:
    """The fewest GPUs that hold the weights and the cache.

    Args:
        weights: bytes of the stored weights.
        gpus: of the node; 0 for a CPU.
        memory: bytes of each GPU, None where unknown: one GPU is taken.
    Raises:
        LaunchError: they do not fit.
    """
    cache = TICKETS * cache_bytes(config, context, precision)
    for tensor in range(1, max(1, gpus) + 1):
        if config.num_groups % tensor or config.num_experts % tensor:
            continue
        needed = (weights + cache) / tensor + RESERVE
        if not gpus or memory is None or needed <= UTILIZATION * memory:
            return ServingPlan(tensor, context, weights, cache)
    whole = (weights + cache) / 1e9
    raise LaunchError(
        f"{whole:.1f} GB of weights and cache and {RESERVE / 1e9:.1f} GB more a GPU do not fit {gpus} GPUs of "
        f"{(memory or 0) / 1e9:g} GB: serve an export with --weights mxfp4, a smaller --context, or use more GPUs."
    )
