"""Memory of one GPU in training, from the shapes of the model, the layout and the batch. Nothing here imports Megatron.

Weights, gradients and optimizer state are counted exactly; activations are what autograd keeps, term by term.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Literal

from common.errors import ConfigurationError
from modeling.hf_config import GptOssConfig
from modeling.layouts import Batch, Layout
from modeling.lora_targets import ATTENTION, EXPERTS, LoraTargets
from modeling.precision import BYTES, PRECISIONS, Precision

GIB = 2**30

# Largest share of the routed tokens that one expert rank gets, over the mean: routers of tuned MoE models stay below.
IMBALANCE = 1.25
# Memory outside the tensors: CUDA context, NCCL's buffers, cuBLAS and cuDNN workspaces; and the allocator's gaps.
FIXED_RESERVE = 2 * GIB
GAPS = 0.05
# Bytes a logit at the loss: its own value, the fp32 copy that becomes the softmax, and that one's gradient.
LOGITS = {"bf16": 2 + 4, "fp32": 4}
# Bytes a value of experts that stay MXFP4: 4 bits, and 8 for every 32.
MXFP4 = 17 / 32


@dataclass(frozen=True)
class TrainingPlan:
    """What is trained, in which precision and batch; the layout is given apart from it.

    Attributes:
        lora: None for training of all parameters.
        recompute: "none", or "full": each layer keeps its input only and runs again in the backward pass.
        packed_experts: whether the base's experts stay MXFP4 (`modeling.packed_experts`).
        decoded_bytes: memory that their decoded values may take at a time.
        fused: True for Transformer Engine's modules; False for those of `modeling.layer_spec`.
    """

    config: GptOssConfig
    batch: Batch
    lora: LoraTargets | None = None
    recompute: Literal["none", "full"] = "none"
    precision: Precision = "bf16"
    distributed_optimizer: bool = True
    packed_experts: bool = False
    decoded_bytes: int = 2**29
    fused: bool = True

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigurationError(f"precision {self.precision!r} is not known: use one of {', '.join(PRECISIONS)}.")
        if self.recompute not in ("none", "full"):
            raise ConfigurationError(f"recompute {self.recompute!r} is not known: use none or full.")


@dataclass(frozen=True)
class Parameters:
    """Parameters that one rank holds, and those of them that it trains; experts apart, since they shard differently.

    `packed` are the weights of experts that stay MXFP4, which Megatron holds as bytes and counts for no parameters.
    """

    dense: int = 0
    experts: int = 0
    packed: int = 0
    trained_dense: int = 0
    trained_experts: int = 0

    @property
    def held(self) -> int:
        return self.dense + self.experts

    def size(self, precision: Precision) -> int:
        """Bytes of all of them."""
        return self.held * BYTES[precision] + int(self.packed * MXFP4)

    @property
    def trained(self) -> int:
        return self.trained_dense + self.trained_experts

    def __add__(self, other: Parameters) -> Parameters:
        return Parameters(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    dispatch: int
    reserve: int
    stage: int = field(default=0, compare=False)

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.dispatch + self.reserve

    def parts(self) -> dict[str, int]:
        """Bytes by purpose."""
        names = ("weights", "gradients", "optimizer", "activations", "dispatch", "reserve")
        return {name: getattr(self, name) for name in names}


# ---- parameters ---------------------------------------------------------------------------------------------------


def parameters(plan: TrainingPlan, layout: Layout, stage: int = 0) -> Parameters:
    """Parameters of one rank of pipeline stage `stage`, base model and adapters.

    Source: megatron-core 0.15.3 `GPTModel`, `SelfAttention`, `TopKRouter`; nemo 2.7.3 `ParallelLinearAdapter`.
    """
    config = plan.config
    per_stage = config.num_layers // layout.pipeline
    total = Parameters()
    for layer in range(stage * per_stage, (stage + 1) * per_stage):
        total += _layer(plan, layout, layer)
    vocabulary = config.vocab_size // layout.tensor * config.hidden_size
    if stage == 0:
        total += _base(plan, vocabulary)
    if stage == layout.pipeline - 1:
        total += _base(plan, vocabulary + config.hidden_size)
    return total


def _base(plan: TrainingPlan, dense: int, experts: int = 0, packed: int = 0) -> Parameters:
    full = plan.lora is None
    return Parameters(dense, experts, packed, dense if full else 0, experts if full else 0)


def base_bytes(plan: TrainingPlan) -> int:
    """Bytes of the whole base model's weights."""
    return parameters(replace(plan, lora=None), Layout()).size(plan.precision)


def _layer(plan: TrainingPlan, layout: Layout, layer: int) -> Parameters:
    config, tp = plan.config, layout.tensor
    h, f, q, a = config.hidden_size, config.ffn_size, config.qkv_size, config.attention_size
    router = config.num_experts * (h + 1)
    dense = 2 * h + (q * h + q + config.num_heads + h * a) // tp + h + router
    local = config.num_experts // layout.expert
    matrices, biases = local * 3 * f * h, local * (2 * f + h)
    packed = matrices if plan.packed_experts else 0
    total = _base(plan, dense, matrices - packed + biases, packed)
    if plan.lora is None:
        return total
    sizes = {"linear_qkv": (h, q), "linear_proj": (a, h), EXPERTS[0]: (h, 2 * f), EXPERTS[1]: (f, h)}
    for module in plan.lora.modules:
        adapter = plan.lora.rank * sum(sizes[module])
        if module in ATTENTION:
            # Both matrices are split by TP: the rank or the input of the first, the output of the second.
            total += Parameters(dense=adapter // tp, trained_dense=adapter // tp)
        elif _has_experts(plan.lora, layer):
            total += Parameters(experts=local * adapter, trained_experts=local * adapter)
    return total + Parameters(trained_dense=router) if plan.lora.router else total


def _has_experts(lora: LoraTargets, layer: int) -> bool:
    return lora.expert_layers is None or layer in lora.expert_layers


def optimizer_bytes(plan: TrainingPlan, layout: Layout, world: int, held: Parameters) -> int:
    """Adam's two fp32 moments, and the fp32 copy of bf16 parameters, sharded over their replicas.

    Source: megatron-core 0.15.3 `DistributedOptimizer`: dense parameters over DP·CP ranks, experts over theirs.
    """
    each = 12 if plan.precision == "bf16" else 8
    if not plan.distributed_optimizer:
        return each * held.trained
    dense = layout.data_parallel(world) * layout.context
    experts = layout.expert_data_parallel(world)
    return each * (-(-held.trained_dense // dense) + -(-held.trained_experts // experts))


# ---- activations --------------------------------------------------------------------------------------------------


def layer_activations(plan: TrainingPlan, layout: Layout, layer: int) -> int:
    """Bytes that autograd keeps of one layer for one micro-batch.

    Source: the saved tensors of megatron-core 0.15.3's modules; measured in tests/planning/test_memory.py.
    """
    config, lora, b = plan.config, plan.lora, BYTES[plan.precision]
    tokens, share, routed = _tokens(plan, layout)
    tp, h, f = layout.tensor, config.hidden_size, config.ffn_size
    modules = plan.lora.modules if plan.lora else ()
    experts = EXPERTS if lora is None else tuple(m for m in modules if m in EXPERTS and _has_experts(lora, layer))
    rank = lora.rank if lora else 0

    keys = config.num_groups * config.head_dim
    kept = (2 if plan.fused else 4) * share * h  # inputs of the two norms, and torch's normalized values
    # Inputs of linear layers that are trained or carry adapters; an adapter sees the whole sequence.
    kept += share * h if lora is None else tokens * (h + rank) * ("linear_qkv" in modules)
    kept += share * h if lora is None or lora.router else 0
    # The fused projection, of which v is a part, and rotated q and k.
    kept += tokens * (config.qkv_size + config.attention_size + keys) // tp
    kept += tokens * (config.attention_size // tp + rank * ("linear_proj" in modules))  # attention's output
    kept += routed * (h + rank * (lora is not None)) * (EXPERTS[0] in experts)
    kept += routed * (f + rank * (lora is not None)) * (EXPERTS[1] in experts)
    kept += routed * 6 * f  # fc1's two halves, the gate clamped, its activation, the other factor, the product
    normalizers = 4 * tokens * config.num_heads // tp  # the softmax's, fp32
    return kept * b + normalizers + share * config.num_experts * (2 * b + 1)


def _tokens(plan: TrainingPlan, layout: Layout) -> tuple[int, int, int]:
    """Tokens of a micro-batch on this CP rank, on this rank with sequence parallelism, and routed to its experts."""
    tokens = plan.batch.seq_length * plan.batch.micro // layout.context
    share = tokens // layout.tensor
    imbalance = IMBALANCE if layout.expert > 1 else 1
    return tokens, share, int(share * plan.config.experts_per_token * imbalance)


def activations(plan: TrainingPlan, layout: Layout, world: int, stage: int = 0) -> int:
    """Peak bytes of activations on a rank of a pipeline stage, over the micro-batches in flight (1F1B).

    The buffers of the token exchange come on top (`dispatch_buffers`).
    """
    config, b = plan.config, BYTES[plan.precision]
    tokens, share, routed = _tokens(plan, layout)
    per_stage = config.num_layers // layout.pipeline
    layers = [layer_activations(plan, layout, n) for n in range(stage * per_stage, (stage + 1) * per_stage)]
    kept = sum(layers) if plan.recompute == "none" else per_stage * share * config.hidden_size * b
    microbatches = max(1, plan.batch.total // (plan.batch.micro * layout.data_parallel(world)))
    kept *= min(layout.pipeline - stage, microbatches)
    # The peak is at the loss, or in the backward pass of one layer, which exchanges tokens again.
    backward = 3 * routed * config.ffn_size * b + decoded_experts(plan, layout)
    backward += max(layers) if plan.recompute == "full" else 0
    if stage < layout.pipeline - 1:
        return kept + backward
    final = (2 * share + tokens) * config.hidden_size * b
    vocabulary = config.vocab_size // layout.tensor
    final += tokens * vocabulary * LOGITS[plan.precision]
    if plan.lora is None and not plan.fused:
        final += vocabulary * config.hidden_size * b  # the output layer's gradient, before it is accumulated
    return kept + max(backward, final - dispatch_buffers(plan, layout))


def decoded_experts(plan: TrainingPlan, layout: Layout) -> int:
    """Bytes of packed experts that are decoded at a time: groups of whole experts within the bound, at least one."""
    if not plan.packed_experts:
        return 0
    values = 2 * plan.config.ffn_size * plan.config.hidden_size  # of linear_fc1, the larger matrix
    each = values * (2 if plan.precision == "bf16" else 2 + BYTES[plan.precision])  # decoded to bf16, then converted
    group = min(plan.config.num_experts // layout.expert, max(1, plan.decoded_bytes // each))
    return group * values * BYTES[plan.precision]


def dispatch_buffers(plan: TrainingPlan, layout: Layout) -> int:
    """Bytes of the token exchange: routed tokens as sent, as received, and the experts' output on its way back."""
    routed = _tokens(plan, layout)[2]
    return 3 * routed * plan.config.hidden_size * BYTES[plan.precision]


# ---- all of it ----------------------------------------------------------------------------------------------------


def memory_of(plan: TrainingPlan, layout: Layout, world: int, gpu_memory: int) -> Memory:
    """Memory of the fullest GPU of a world of so many ranks, `gpu_memory` bytes each."""
    stages = [_stage(plan, layout, world, gpu_memory, stage) for stage in range(layout.pipeline)]
    return max(stages, key=lambda part: part.total)


def _stage(plan: TrainingPlan, layout: Layout, world: int, gpu_memory: int, stage: int) -> Memory:
    held = parameters(plan, layout, stage)
    return Memory(
        weights=held.size(plan.precision),
        gradients=held.trained * 4,  # nemo 2.7.3 MegatronMixedPrecision: grad_reduce_in_fp32
        optimizer=optimizer_bytes(plan, layout, world, held),
        activations=activations(plan, layout, world, stage),
        dispatch=dispatch_buffers(plan, layout),
        reserve=FIXED_RESERVE + int(GAPS * gpu_memory),
        stage=stage,
    )
