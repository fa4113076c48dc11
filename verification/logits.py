"""Logits of a gpt-oss of real size in Megatron, its experts MXFP4, against transformers: fp32, layer by layer there.

One prompt of real tickets in gpt-oss's own vocabulary, longer than YaRN's original 4,096 positions; compared are its
first positions, past the sliding window, and its last. Neither side needs more memory than the packed model.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from common.progress import Progress, quiet
from verification.subject import Subject

TOKENS, COMPARED = 4_480, 320


def largest_difference(subject: Subject, tokens: int = TOKENS, progress: Progress = quiet) -> float:
    """Largest difference of two logits, in standard deviations of transformers' logits."""
    from evaluation import transformers_layers

    prompt = torch.tensor([_prompt(subject, tokens)])
    last = range(max(COMPARED, tokens - COMPARED), tokens)
    positions = torch.tensor([[*range(min(COMPARED, tokens)), *last]])
    file = subject.folder / f"megatron-{tokens}.safetensors"
    save_file({"tokens": prompt, "positions": positions}, file)
    megatron = [sys.executable, "-m", "verification.logits", str(subject.nemo()), str(file)]
    subprocess.run(megatron, check=True, timeout=7200, stdout=subprocess.DEVNULL)
    ours = load_file(file)["logits"]
    theirs = transformers_layers.logits(subject.hf(), prompt, positions, progress)
    return float((ours - theirs).abs().max() / theirs.std())


def _prompt(subject: Subject, tokens: int) -> list[int]:
    """Tickets one after the other, cut to `tokens`."""
    from tokenizers import Tokenizer

    tokenizer, ids = Tokenizer.from_file(str(subject.hf() / "tokenizer.json")), []
    for ticket in subject.ticket_texts():
        ids += tokenizer.encode(ticket, add_special_tokens=False).ids
        if len(ids) >= tokens:
            return ids[:tokens]
    raise ValueError(f"{subject.tickets} has {len(ids)} tokens, {tokens} are needed: name a file with more tickets.")


def in_megatron(nemo: Path, file: Path) -> None:
    """Add to the file's `tokens` and `positions` the logits of the checkpoint at them."""
    from modeling import inference
    from modeling.hf_config import GptOssConfig

    inference.initialize()
    config, given = GptOssConfig.from_file(nemo / "context" / "hf_config.json"), load_file(file)
    length = given["tokens"].shape[1]
    model = inference.build_model(config, seq_length=length, dtype=torch.float32, packed_experts=True)
    inference.load_weights(model, nemo)
    save_file(given | {"logits": inference.logits(model, given["tokens"], given["positions"])}, file)
    inference.shutdown()


if __name__ == "__main__":
    in_megatron(Path(sys.argv[1]), Path(sys.argv[2]))
