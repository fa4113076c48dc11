"""One process: the imported base in a Transformer Engine model, its logits and gradients, and the way back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from tests.gpu_path import emulation, kernels
from tests.gpu_path.checks import base

LENGTHS, PACK = (37, 150, 90), 300
NEMO_MASK = torch.ones(1, dtype=torch.long)
"""What NeMo's packed dataset gives for an attention mask."""


def run(folder: Path) -> dict[str, Any]:
    from modeling import inference
    from modeling.hf_config import GptOssConfig

    emulation.let_fused_attention_take_fp32()
    hf, nemo = base.make_base(folder)
    config = GptOssConfig.from_file(hf)
    inference.initialize()
    engine, local = base.engine_model(config), base.local_model(config)
    inference.load_weights(local, nemo)
    found: dict[str, Any] = {"spec": sorted({type(module).__name__ for module in engine.modules()})}
    found["strict"] = strict_load(engine, nemo)
    base.use_backend("fused")
    torch.manual_seed(0)
    tokens = torch.randint(3, config.vocab_size, (2, 200))
    reference = transformers_model(hf)
    found |= logits(engine, local, reference, tokens)
    found |= packed(engine, reference, config.vocab_size)
    found |= both_gradients(engine, local, tokens)
    found |= permutation(config, nemo)
    found |= way_back(engine, hf, nemo, folder)
    found |= unfused(engine, reference, tokens)
    return found


def transformers_model(hf: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32, attn_implementation="eager").eval()


def strict_load(engine: Any, nemo: Path) -> str:
    """Load as NeMo restores a base, every key that the model asks for included; what was missing, or nothing."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.validation import StrictHandling

    try:
        state: Any = dist_checkpointing.load(
            engine.sharded_state_dict(prefix="module."),
            str(nemo / "weights"),
            strict=StrictHandling.ASSUME_OK_UNEXPECTED,
        )
    except BaseException as error:  # torch's CheckpointException is no Exception
        return str(error)[-300:] or type(error).__name__
    engine.load_state_dict({key.removeprefix("module."): value for key, value in state.items()}, strict=True)
    return ""


@torch.no_grad()
def engine_logits(engine: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return engine(tokens, base.positions(tokens), None).float()


@torch.no_grad()
def logits(
    engine: torch.nn.Module, local: torch.nn.Module, reference: torch.nn.Module, tokens: torch.Tensor
) -> dict[str, Any]:
    kernels.CALLS.clear()
    from modeling import inference

    found, expected = engine_logits(engine, tokens), reference(tokens).logits
    beside = local(tokens, base.positions(tokens), base.causal(tokens)).float()
    return {
        "calls": dict(kernels.CALLS),
        "logits_std": expected.std().item(),
        "logits": (found - expected).abs().max().item(),
        "evaluation": (inference.logits(engine, tokens) - expected).abs().max().item(),
        "logits_local": (found - beside).abs().max().item(),
    }


@torch.no_grad()
def packed(engine: torch.nn.Module, reference: torch.nn.Module, vocabulary: int) -> dict[str, Any]:
    """Three sequences in one of 300 tokens, padded as NeMo pads, against each of them alone."""
    sequences = [torch.randint(3, vocabulary, (length,)) for length in LENGTHS]
    kernels.CALLS.clear()
    found = packed_logits(engine, sequences, NEMO_MASK)[0]
    parts = found.split([*LENGTHS, PACK - sum(LENGTHS)])
    differences = [
        (part - reference(sequence[None]).logits[0]).abs().max().item()
        for part, sequence in zip(parts, sequences, strict=False)
    ]
    return {"packed": max(differences), "packed_calls": dict(kernels.CALLS)}


def packed_logits(model: torch.nn.Module, sequences: list[torch.Tensor], mask: torch.Tensor | None) -> torch.Tensor:
    from megatron.core.packed_seq_params import PackedSeqParams

    rest = PACK - sum(map(len, sequences))
    tokens = torch.cat([*sequences, torch.ones(rest, dtype=torch.long)])[None]
    where = torch.cat([*(torch.arange(len(each)) for each in sequences), torch.arange(rest)])[None]
    ends = torch.tensor([0, *map(len, sequences), rest]).cumsum(0).to(torch.int32)
    longest: Any = torch.tensor(max(map(len, sequences)), dtype=torch.int32)  # as NeMo gives it
    parameters = PackedSeqParams("thd", ends, ends, max_seqlen_q=longest, max_seqlen_kv=longest)
    return model(tokens, where, mask, packed_seq_params=parameters).float()


def both_gradients(engine: torch.nn.Module, local: torch.nn.Module, tokens: torch.Tensor) -> dict[str, Any]:
    kernels.CALLS.clear()
    loss, found = base.gradients(engine, tokens, local=False)
    once = kernels.CALLS["fused_attn_fwd"]
    _, expected = base.gradients(local, tokens, local=True)
    config: Any = engine.config
    config.recompute_granularity, config.recompute_method, config.recompute_num_layers = "full", "uniform", 1
    again_loss, again = base.gradients(engine, tokens, local=False)
    twice = kernels.CALLS["fused_attn_fwd"] - once
    config.recompute_granularity = None
    return {
        "trained": [len(found), sum(map(torch.numel, found.values())), sum(map(torch.numel, expected.values()))],
        "gradients": max(base.relative(found[name], base.of_local(name, expected)) for name in found),
        "attentions": [once, twice],
        "recomputed": max(base.relative(again[name], found[name]) for name in found) + abs(again_loss - loss),
    }


def permutation(config: Any, nemo: Path) -> dict[str, Any]:
    """Transformer Engine's Triton kernels for sorting tokens by expert, in Triton's interpreter, on a few tokens."""
    from modeling import inference

    tokens = torch.randint(3, config.vocab_size, (1, 10))
    models = [base.engine_model(config, moe_permute_fusion=fused) for fused in (False, True)]
    for model in models:
        inference.load_weights(model, nemo)
    base.use_backend("fused")
    (plain_loss, plain), (loss, found) = (base.gradients(model, tokens, local=False) for model in models)
    return {
        "permutation": max(base.relative(found[name], plain[name]) for name in plain) + abs(loss - plain_loss),
    }


def way_back(engine: Any, hf: Path, nemo: Path, folder: Path) -> dict[str, Any]:
    """Save the model as Megatron does, export it with the package, compare with what was imported."""
    from megatron.core import dist_checkpointing
    from safetensors.torch import load_file

    from converters.export_hf import export_checkpoint

    saved, exported = folder / "saved", folder / "exported"
    (saved / "weights").mkdir(parents=True)
    dist_checkpointing.save(engine.sharded_state_dict(prefix="module."), str(saved / "weights"))
    shutil.copytree(nemo / "context", saved / "context")
    export_checkpoint(saved, exported, weights="bf16")
    before, after = (
        {name: value for file in sorted(of.glob("*.safetensors")) for name, value in load_file(file).items()}
        for of in (hf, exported)
    )
    same = [name for name in before if name in after and torch.equal(before[name], after[name])]
    return {"tensors": [len(same), len(before), len(after)]}


@torch.no_grad()
def unfused(engine: torch.nn.Module, reference: torch.nn.Module, tokens: torch.Tensor) -> dict[str, Any]:
    """Transformer Engine's attention in torch, which fp32 gets on a GPU: no kernel of attention is replaced here."""
    base.use_backend("unfused")
    kernels.CALLS.clear()
    difference = (engine_logits(engine, tokens) - reference(tokens).logits).abs().max().item()
    return {"unfused": difference, "unfused_calls": dict(kernels.CALLS)}
