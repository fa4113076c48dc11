"""NeMo's own importer of gpt-oss on a CPU: `stock_import.py HF NEMO` prints the seconds of loading and of the rest.

`hf_ckpt_load`, which reads and dequantizes, is NeMo's as it is. So is the rest of `llm.import_ckpt`, but for two things
that it cannot do without a GPU: its target is Transformer Engine's layer, so the names are mapped to the layer that
runs on a CPU; and its configuration does not pass its own check (nemo_toolkit 2.7.3), so this package's is taken.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from modeling import cpu_backend

cpu_backend.activate()

from nemo.collections.llm.gpt.model import gpt_oss  # noqa: E402
from nemo.lightning import io  # noqa: E402
from nemo.lightning.io.state import TransformFns  # noqa: E402

from modeling.hf_config import GptOssConfig  # noqa: E402
from modeling.model_config import nemo_config  # noqa: E402


class StockImporter(gpt_oss.HFGPTOSSImporter):
    """NeMo's importer with the names of Megatron's local layer."""

    seconds: dict[str, float]

    def hf_ckpt_load(self) -> dict[str, Any]:
        started = time.perf_counter()
        state = super().hf_ckpt_load()
        self.seconds["load"] = time.perf_counter() - started
        return state

    def nemo_setup(self, model: Any, trainer: Any = None, *args: Any, **kwargs: Any) -> Any:
        return super().nemo_setup(model, trainer, *args, **kwargs, ckpt_async_save=False, process_group_backend="gloo")

    @cached_property
    def config(self) -> Any:
        return nemo_config(GptOssConfig.from_file(Path(str(self))), seq_length=4096)

    def convert_state(self, source: Any, target: Any) -> Any:
        same = {
            "model.embed_tokens.weight": "embedding.word_embeddings.weight",
            "model.norm.weight": "decoder.final_layernorm.weight",
            "lm_head.weight": "output_layer.weight",
            "**.input_layernorm.weight": "**.input_layernorm.weight",
            "**.self_attn.o_proj.bias": "**.self_attention.linear_proj.bias",
            "**.self_attn.o_proj.weight": "**.self_attention.linear_proj.weight",
            "**.self_attn.sinks": "**.self_attention.core_attention.softmax_offset",
            "**.post_attention_layernorm.weight": "**.pre_mlp_layernorm.weight",
            "**.mlp.router.bias": "**.mlp.router.bias",
            "**.mlp.router.weight": "**.mlp.router.weight",
        }
        transforms = []
        for kind, merge in (("bias", TransformFns.merge_qkv_bias), ("weight", TransformFns.merge_qkv)):
            names = tuple(f"**.self_attn.{part}_proj.{kind}" for part in "qkv")
            transforms.append(io.state_transform(names, f"**.self_attention.linear_qkv.{kind}", merge))
            for theirs, ours, change in (
                ("gate_up_proj", "linear_fc1", lambda x: torch.stack([gpt_oss._interleave(e) for e in x])),
                ("down_proj", "linear_fc2", lambda x: x),
            ):
                name = f"**.mlp.experts.{theirs}" + ("_bias" if kind == "bias" else "")
                experts = f"**.mlp.experts.{ours}.{kind}"
                transforms.append(io.state_transform(name, experts, change))
        io.apply_transforms(source, target, mapping=same, transforms=transforms, cast_dtype=self.config.params_dtype)
        return target


def main(hf: str, nemo: str) -> None:
    os.environ.setdefault("MASTER_PORT", "29577")
    importer = StockImporter(hf)
    importer.seconds = {}
    started = time.perf_counter()
    importer.apply(Path(nemo))
    print(json.dumps(importer.seconds | {"all": time.perf_counter() - started}))


if __name__ == "__main__":
    main(*sys.argv[1:])
