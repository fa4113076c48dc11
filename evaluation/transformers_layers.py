"""A Hugging Face folder in transformers, fp32, one decoder layer in memory at a time: the whole model need not fit.

Every layer is transformers' own, filled from the folder's safetensors. MXFP4 is decoded by our kernel, which gives the
bits of transformers' function (tests/modeling/test_mxfp4.py) in a tenth of its time and memory.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from common.errors import CheckpointError
from common.progress import Done, Progress, quiet
from common.values import one_line
from converters.mapping import BLOCKS, SCALES
from converters.storage.safetensors_files import INDEX, SINGLE
from modeling.mxfp4 import BLOCK, dequantize

SCORES = 2**27
"""Attention scores that a block of queries may have, all heads together: transformers' eager attention keeps about five
fp32 copies of them."""


@torch.no_grad()
def logits(folder: Path, tokens: torch.Tensor, positions: torch.Tensor, progress: Progress = quiet) -> torch.Tensor:
    """Logits (B, K, V), fp32, of prompts (B, S) at `positions` (B, K), both int64; prompts have one length.

    Memory is a layer in fp32 (3.3 GB of gpt-oss-20b, 13 GB of the 120b) and the hidden states.

    Raises:
        CheckpointError: a file or a weight is missing, damaged, or has another shape than config.json says.
    """
    try:
        with ExitStack() as stack:
            return _Layers(folder, stack).logits(tokens, positions, progress)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"transformers cannot load {folder} ({one_line(error)}): export it again.") from error


class _Layers:
    def __init__(self, folder: Path, stack: ExitStack) -> None:
        from transformers import AutoConfig

        self.config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        self.config._attn_implementation = "eager"  # as from_pretrained would set it; no other one on a CPU has sinks
        files = [stack.enter_context(safe_open(file, "pt")) for file in _files(folder)]
        self.file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118  # no iterator
        self.unread = set(self.file_of)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def logits(self, tokens: torch.Tensor, positions: torch.Tensor, progress: Progress) -> torch.Tensor:
        from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss

        count, length = self.config.num_hidden_layers, tokens.shape[1]
        with torch.device("meta"):
            norm = gpt_oss.GptOssRMSNorm(self.config.hidden_size, eps=self.config.rms_norm_eps)
        rotary = gpt_oss.GptOssRotaryEmbedding(self.config).to(self.device)
        hidden = self._embedded(tokens)
        turned = rotary(hidden, torch.arange(length, device=self.device)[None])
        for number in range(count):
            with torch.device("meta"):
                layer = gpt_oss.GptOssDecoderLayer(self.config, number)
            self._fill(layer, f"model.layers.{number}.")
            hidden = self._through(layer, number, hidden, turned)
            del layer  # before the next one is built
            progress(Done("layer", number + 1, count))
        self._fill(norm, "model.norm.")
        wanted = hidden[torch.arange(len(tokens))[:, None], positions]
        head = "model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"
        found = torch.nn.functional.linear(norm(wanted), self._read(head)).cpu()
        if self.unread:
            raise ValueError(f"{len(self.unread)} weights that its config.json does not know, as {min(self.unread)}")
        return found

    def _embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, S) → (B, S, H); only the rows of tokens that occur become fp32."""
        table = self._stored("model.embed_tokens.weight")
        return torch.nn.functional.embedding(tokens, table).float().to(self.device)

    def _through(
        self,
        layer: Any,
        number: int,
        hidden: torch.Tensor,
        turned: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """(B, S, H) → (B, S, H). Attention goes by blocks of queries, which find earlier keys in transformers' cache;
        the experts take all tokens at once, since every block would read all their weights."""
        from transformers import DynamicCache

        batch, length, _ = hidden.shape
        block = max(1, SCORES // (batch * self.config.num_attention_heads * length))
        cache, attended = DynamicCache(), []
        for start in range(0, length, block):
            end = min(start + block, length)
            where = torch.arange(start, end, device=self.device)
            out, _ = layer.self_attn(
                layer.input_layernorm(hidden[:, start:end]),
                attention_mask=self._mask(number, start, end),
                past_key_values=cache,
                cache_position=where,
                position_embeddings=tuple(part[:, start:end] for part in turned),
            )
            attended.append(out)
        hidden = hidden + torch.cat(attended, 1)
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))[0]

    def _mask(self, number: int, start: int, end: int) -> torch.Tensor:
        """(1, 1, end - start, end), 0 where a query sees a key, else the lowest number: what eager attention adds."""
        distance = torch.arange(start, end)[:, None] - torch.arange(end)
        seen = distance >= 0
        if self.config.layer_types[number] == "sliding_attention":
            seen &= distance < self.config.sliding_window
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
        return mask[None, None].to(self.device)

    def _fill(self, module: torch.nn.Module, prefix: str) -> None:
        state = {name: self._read(prefix + name) for name, _ in module.named_parameters()}
        module.load_state_dict(state, assign=True)
        module.requires_grad_(False).eval()

    def _read(self, name: str) -> torch.Tensor:
        if name + BLOCKS not in self.file_of:
            return self._stored(name).to(self.device, torch.float32)
        return self._decoded(name).to(self.device)

    def _stored(self, name: str) -> torch.Tensor:
        self.unread.discard(name)
        return self.file_of[name].get_tensor(name)

    def _decoded(self, name: str) -> torch.Tensor:
        """(E, in, out) in fp32: transformers keeps the transpose of what is stored."""
        blocks, scales = (self._stored(name + end) for end in (BLOCKS, SCALES))
        experts, out, groups, _ = blocks.shape
        decoded = torch.empty(experts, groups * BLOCK, out)
        for expert in range(experts):
            bits = dequantize(blocks[expert].numpy(), scales[expert].numpy(), threads=os.cpu_count() or 1)
            decoded[expert] = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).T
        return decoded


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.is_file():
        return [folder / SINGLE]
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
