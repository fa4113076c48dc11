"""The parallel layouts that Megatron-core accepts for a gpt-oss model. Nothing here imports it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from modeling.hf_config import GptOssConfig


@dataclass(frozen=True)
class Layout:
    """Ranks along each axis of model parallelism; data parallelism takes the rest of the world.

    Experts are never split by tensor parallelism: their biases forbid it (megatron-core 0.15.3,
    `TransformerConfig.__post_init__`). So EP regroups the TP × CP × DP ranks of a pipeline stage, and no MXFP4 block
    of 32 values is ever cut: only whole experts change rank.
    """

    tensor: int = 1
    expert: int = 1
    pipeline: int = 1
    context: int = 1

    def __str__(self) -> str:
        return f"TP{self.tensor} EP{self.expert} PP{self.pipeline} CP{self.context}"

    @property
    def processes(self) -> int:
        """The fewest processes that the layout runs in."""
        return self.pipeline * math.lcm(self.tensor * self.context, self.expert)

    def data_parallel(self, world: int) -> int:
        """Replicas of the dense weights in a world of so many ranks."""
        return world // (self.tensor * self.pipeline * self.context)

    def expert_data_parallel(self, world: int) -> int:
        """Replicas of each expert in a world of so many ranks."""
        return world // (self.expert * self.pipeline)

    def overrides(self) -> list[str]:
        """The layout as `key=value` overrides of a recipe."""
        sizes = {
            "tensor_model_parallel_size": self.tensor,
            "expert_model_parallel_size": self.expert,
            "pipeline_model_parallel_size": self.pipeline,
            "context_parallel_size": self.context,
        }
        return [f"trainer.strategy.{name}={size}" for name, size in sizes.items()]


@dataclass(frozen=True)
class Batch:
    """How sequences are cut and batched: tokens a sequence, sequences a micro-batch and a step.

    A `packed` sequence holds several tickets.
    """

    seq_length: int
    micro: int = 1
    total: int = 16
    packed: bool = False


def violations(
    config: GptOssConfig, layout: Layout, world: int, batch: Batch | None = None, lora_rank: int | None = None
) -> list[str]:
    """What Megatron-core, NeMo or Transformer Engine would refuse in a layout; empty for a legal one.

    Source: megatron-core 0.15.3 `parallel_state.initialize_model_parallel`, `TransformerConfig.__post_init__`,
    `MoELayer`, `num_microbatches_calculator`, `get_batch_on_this_cp_rank` for packed sequences; Transformer Engine
    `AttnFuncWithCPAndQKVOA2A` for CP, since sinks allow a2a only; nemo 2.7.3 `ParallelLinearAdapter`, which splits the
    rank by TP.
    """
    tp, ep, pp, cp = layout.tensor, layout.expert, layout.pipeline, layout.context
    if min(tp, ep, pp, cp) < 1:
        return ["every size must be at least 1"]
    rules = [
        (world % (tp * pp * cp) == 0, f"{world} GPUs do not divide by TP·PP·CP = {tp * pp * cp}"),
        (world % (ep * pp) == 0, f"{world} GPUs do not divide by EP·PP = {ep * pp}"),
        (config.num_heads % (tp * cp) == 0, f"{config.num_heads} heads do not divide by TP·CP = {tp * cp}"),
        (config.num_groups % (tp * cp) == 0, f"{config.num_groups} query groups do not divide by TP·CP = {tp * cp}"),
        (config.num_experts % ep == 0, f"{config.num_experts} experts do not divide by EP = {ep}"),
        (config.num_layers % pp == 0, f"{config.num_layers} layers do not divide by PP = {pp}"),
        (config.vocab_size % tp == 0, f"a vocabulary of {config.vocab_size} does not divide by TP = {tp}"),
    ]
    if lora_rank is not None:
        rules.append((lora_rank % tp == 0, f"LoRA rank {lora_rank} does not divide by TP = {tp}"))
    if batch is not None:
        # Sequence parallelism, which MoE training demands with TP, cuts each CP part; CP itself cuts into 2·CP pieces.
        pieces = tp * cp * (2 if cp > 1 else 1)
        rules.append((batch.seq_length % pieces == 0, f"{batch.seq_length} tokens do not divide by {pieces}"))
        step = batch.micro * max(1, layout.data_parallel(world))
        rules.append((batch.total % step == 0, f"a batch of {batch.total} does not divide by micro-batch·DP = {step}"))
        rules.append((cp == 1 or not batch.packed, f"packed sequences cannot be split over CP = {cp} ranks"))
    return [sentence for kept, sentence in rules if not kept]


def legal_layouts(
    config: GptOssConfig, world: int, batch: Batch | None = None, lora_rank: int | None = None
) -> Iterator[Layout]:
    """Every legal layout of a world of so many ranks, smallest model parallelism first."""
    sizes = [size for size in range(1, world + 1) if world % size == 0]
    for pp in sizes:
        for cp in sizes:
            for tp in sizes:
                for ep in sizes:
                    layout = Layout(tp, ep, pp, cp)
                    if not violations(config, layout, world, batch, lora_rank):
                        yield layout
