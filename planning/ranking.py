"""Which parallel layout to train at: those that fit, fastest first, and what to change when none fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from modeling.layouts import Batch, Layout, legal_layouts
from modeling.lora_targets import ATTENTION, LoraTargets
from planning.memory import BYTES, Memory, TrainingPlan, memory_of, parameters

# Rates that only rank layouts against each other: bf16 FLOP/s that training reaches, bytes/s inside and between nodes.
COMPUTE, INSIDE, BETWEEN = 400e12, 300e9, 40e9


@dataclass(frozen=True)
class Cluster:
    """The GPUs to plan for; `gpu_memory` is bytes of each."""

    nodes: int
    gpus_per_node: int
    gpu_memory: int

    @property
    def world(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Candidate:
    """A legal layout, its memory, and the seconds of a step by cause."""

    layout: Layout
    memory: Memory
    seconds: dict[str, float]
    gpu_memory: int

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.gpu_memory

    @cached_property
    def cost(self) -> float:
        return sum(self.seconds.values())

    def reason(self, best: Candidate) -> str:
        """Why it has its rank, in one clause."""
        if not self.fits:
            part, size = max(self.memory.parts().items(), key=lambda item: item[1])
            return f"{(self.memory.total - self.gpu_memory) / 1e9:.1f} GB too much; {part} alone {size / 1e9:.1f} GB"
        lost = {name: value for name, value in self.seconds.items() if name != "compute"}
        name, value = max(lost.items(), key=lambda item: item[1])
        most = (
            f"loses most to {name} ({value / self.cost:.0%})" if value > 0.005 * self.cost else "loses next to nothing"
        )
        return most if self is best else f"{self.cost / best.cost - 1:.0%} slower; {most}"


def rank_layouts(plan: TrainingPlan, cluster: Cluster) -> list[Candidate]:
    """Every legal layout: first those that fit, fastest first, then the others, nearest to fitting first."""
    rank = plan.lora.rank if plan.lora else None
    candidates = [
        Candidate(
            layout,
            memory_of(plan, layout, cluster.world, cluster.gpu_memory),
            step_seconds(plan, layout, cluster),
            cluster.gpu_memory,
        )
        for layout in legal_layouts(plan.config, cluster.world, plan.batch, rank)
    ]
    # Of equally fast ones, the one that leaves more memory free.
    return sorted(candidates, key=lambda c: (not c.fits, round(c.cost, 4) if c.fits else 0, c.memory.total))


def step_seconds(plan: TrainingPlan, layout: Layout, cluster: Cluster) -> dict[str, float]:
    """Rough seconds of one step by cause; they compare layouts of one cluster, and forecast nothing.

    Source: bytes of megatron-core's collectives, ring algorithms, nothing overlapped.
    """
    config, b = plan.config, BYTES[plan.precision]
    tp, ep, pp, cp = layout.tensor, layout.expert, layout.pipeline, layout.context
    data = layout.data_parallel(cluster.world)
    microbatches = plan.batch.total // (plan.batch.micro * data)
    tokens = plan.batch.seq_length * plan.batch.micro // cp  # of a micro-batch, on this rank's part of the sequence
    layers, h = config.num_layers // pp, config.hidden_size
    active = config.num_layers * (
        h * (config.qkv_size + config.attention_size) + config.experts_per_token * 3 * h * config.ffn_size
    )
    active += h * config.vocab_size
    passes = (2 if plan.lora else 3) + (plan.recompute == "full")  # LoRA computes no gradients of frozen weights
    compute = 2 * active * passes * plan.batch.seq_length * plan.batch.total / cluster.world / COMPUTE

    def exchange(size: float, ranks: int, span: int) -> float:
        return size * (ranks - 1) / ranks / (INSIDE if span <= cluster.gpus_per_node else BETWEEN)

    per_layer = exchange(4 * tokens * h * b, tp, tp)  # gather and scatter around attention, forward and backward
    experts = exchange(4 * tokens / tp * config.experts_per_token * h * b, ep, ep)
    context = exchange(2 * tokens * (config.qkv_size + config.attention_size) / tp * b, cp, tp * cp)
    held = parameters(plan, layout)
    span = min(cluster.world, tp * cp * data)
    gradients = exchange((4 + b) * held.trained_dense, data * cp, span)
    gradients += exchange((4 + b) * held.trained_experts, layout.expert_data_parallel(cluster.world), span)
    return {
        "compute": compute,
        "pipeline bubbles": compute * (pp - 1) / microbatches,
        "tensor parallelism": per_layer * layers * microbatches,
        "expert exchange": experts * layers * microbatches,
        "context parallelism": context * layers * microbatches,
        "gradient exchange": gradients,
    }


def advice(plan: TrainingPlan, cluster: Cluster) -> list[str]:
    """Changes that make the training fit: each single one that suffices, else the shortest combination."""
    changes = _changes(plan)
    single = [text for text, change in changes if _fits(change(plan), cluster)]
    more = next((n for n in (2, 4, 8, 16, 32, 64) if _fits(*_grow(plan, cluster, n))), None)
    if more:
        batch = _grow(plan, cluster, more)[0].batch.total
        larger = f" and a global batch of {batch}" if batch != plan.batch.total else ""
        single.append(f"use {cluster.nodes * more} nodes instead of {cluster.nodes}{larger}")
    if single:
        return single
    texts: list[str] = []
    for text, change in changes:
        plan = change(plan)
        texts.append(text)
        if _fits(plan, cluster):
            return [", and ".join(texts)]
    return []


def _fits(plan: TrainingPlan, cluster: Cluster) -> bool:
    return any(candidate.fits for candidate in rank_layouts(plan, cluster)[:1])


def _grow(plan: TrainingPlan, cluster: Cluster, factor: int) -> tuple[TrainingPlan, Cluster]:
    larger = replace(cluster, nodes=cluster.nodes * factor)
    step = plan.batch.micro * larger.world
    total = plan.batch.total if _fits(plan, larger) else -(-plan.batch.total // step) * step
    return replace(plan, batch=replace(plan.batch, total=total)), larger


def _changes(plan: TrainingPlan) -> list[tuple[str, Callable[[TrainingPlan], TrainingPlan]]]:
    """Changes that save memory, in the order in which they cost least; only those that would change something."""

    def batch(**fields: int) -> Callable[[TrainingPlan], TrainingPlan]:
        return lambda p: replace(p, batch=replace(p.batch, **fields))

    changes: list[tuple[str, Callable[[TrainingPlan], TrainingPlan]]] = []
    if plan.lora and plan.config.has_mxfp4 and not plan.packed_experts:
        changes.append(("set model.experts=mxfp4", lambda p: replace(p, packed_experts=True)))
    if plan.batch.micro > 1:
        changes.append(("set data.micro_batch_size=1", batch(micro=1)))
    if plan.recompute == "none":
        changes.append(("recompute activations in full", lambda p: replace(p, recompute="full")))
    half: Batch = replace(plan.batch, seq_length=plan.batch.seq_length // 2)
    if half.seq_length >= 256:
        changes.append((f"set data.seq_length={half.seq_length}", batch(seq_length=half.seq_length)))
    if plan.lora is None:
        changes.append(("train with LoRA instead of all parameters", lambda p: replace(p, lora=LoraTargets(16))))
    elif plan.lora.modules != ATTENTION:
        lora = replace(plan.lora, modules=ATTENTION)
        changes.append(("adapt linear_qkv and linear_proj only", lambda p: replace(p, lora=lora)))
    return changes
