"""Which attention backend Transformer Engine takes for gpt-oss, for every machine and use, beside what we say.

Transformer Engine's own Python filters and the choice of its compiled library, at the shapes of both models: 64 heads,
8 groups of keys, head dimension 64, sinks, both kinds of layer.
"""

from __future__ import annotations

from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import torch

from common.errors import ConfigurationError
from launch import doctor
from modeling import attention
from tests.gpu_path import emulation
from tests.gpu_path.checks import base

CUDNN = (91300, 91301, 91700, 91800, 92000)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LAYOUTS = {False: ("sbhd_sbhd_sbhd", "causal"), True: ("thd_thd_thd", "padding_causal")}
WINDOWS = ((127, 0), (-1, 0))


def run(folder: Path) -> dict[str, Any]:
    uses = product(emulation.DEVICES, CUDNN, DTYPES, (False, True), (1, 2))
    cases = [case(*use) for use in uses]
    emulation.become((9, 0), 92000)
    point_to_point = choice("fused", "bf16", False, 2, WINDOWS[0], exchange="p2p")
    return {"cases": cases, "p2p": point_to_point, "health": {str(gpu): health(gpu) for gpu in emulation.DEVICES}}


def health(capability: tuple[int, int]) -> list[str]:
    """What `nemo-run doctor` and containers/health.py say about attention on a GPU."""
    emulation.become(capability, 91800)
    lines = doctor.device(emulation.machine())
    return [f"{line.about}: {line.text}" for line in lines if line.about.startswith("attention")]


def case(capability: tuple[int, int], cudnn: int, precision: str, packed: bool, context: int) -> dict[str, Any]:
    """One machine and use: what our function says, and what Transformer Engine would then take."""
    emulation.become(capability, cudnn)
    machine = emulation.machine()
    try:
        ours = attention.attention_backend(machine, packed=packed, precision=precision, context=context)
    except ConfigurationError as error:
        ours = f"refused: {error}"
    allowed = "fused" if ours.startswith("refused") or ours == "local" else ours
    theirs = {choice(allowed, precision, packed, context, window) for window in WINDOWS}
    name = f"{capability} cuDNN {cudnn} {precision} {'packed' if packed else 'dense'} CP{context}"
    return {"name": name, "ours": ours, "theirs": sorted(theirs)}


def choice(
    allowed: str,
    precision: str,
    packed: bool,
    context: int,
    window: tuple[int, int],
    exchange: str = attention.CP_EXCHANGE,
) -> str:
    """The backend that Transformer Engine takes when Megatron allows it one, or "none"."""
    from transformer_engine.pytorch.attention.dot_product_attention import (  # pyright: ignore[reportMissingImports]
        utils,
    )

    base.use_backend(allowed)
    layout, mask = LAYOUTS[packed]
    asked = {
        "qkv_type": torch.Tensor,
        "qkv_dtype": DTYPES[precision],
        "qkv_layout": layout,
        "batch_size": 1,
        "num_heads": 64 // context,
        "num_gqa_groups": 8 // context,
        "max_seqlen_q": 2048,
        "max_seqlen_kv": 2048,
        "head_dim_qk": 64,
        "head_dim_v": 64,
        "attn_mask_type": mask,
        "window_size": window,
        "bottom_right_diagonal": False,
        "context_parallel": context > 1,
        "cp_comm_type": exchange,
        "is_training": True,
        "softmax_type": "learnable",
    }
    known = {field.name for field in fields(utils.AttentionParams)}
    given = {name: value for name, value in asked.items() if name in known}
    flash, _, fused, _, unfused, *_ = utils.get_attention_backend(utils.AttentionParams(**given))
    return "flash" if flash else "fused" if fused else "unfused" if unfused else "none"
