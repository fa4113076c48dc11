"""Logits of a gpt-oss of real size in Megatron, its experts MXFP4, against transformers: fp32, layer by layer there.

One prompt of real tickets in gpt-oss's own vocabulary; compared are its first positions, past the sliding window, and
its last. Neither side needs more memory than the packed model.

A router takes the best 4 of 32 experts. Where the fourth and the fifth are a rounding error apart, fp32 decides either
way, and in a deep model another expert for one token changes everything after it: of 107,520 decisions (4,480 tokens
in 24 layers) one or two are that close. So all layers see a prompt of 640 tokens, and a few layers one past YaRN's
original 4,096 positions; a difference says how close the closest decision was.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from common.progress import Progress, quiet
from verification.subject import Subject

COMPARED = 320
"""Positions at either end of the prompt."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        difference: the largest of two logits, in standard deviations of transformers' logits.
        closest: the smallest lead of a router's last chosen expert over the next one, of all tokens and layers.
    """

    difference: float
    closest: float


def compare(subject: Subject, tokens: int, progress: Progress = quiet) -> Comparison:
    """Compare the logits of one prompt of so many tokens."""
    from evaluation import transformers_layers

    prompt = torch.tensor([_prompt(subject, tokens)])
    last = range(max(COMPARED, tokens - COMPARED), tokens)
    positions = torch.tensor([[*range(min(COMPARED, tokens)), *last]])
    file = subject.folder / f"megatron-{tokens}.safetensors"
    save_file({"tokens": prompt, "positions": positions}, file)
    megatron = [sys.executable, "-m", "verification.logits", str(subject.nemo()), str(file)]
    subprocess.run(megatron, check=True, timeout=7200, stdout=subprocess.DEVNULL)
    ours = load_file(file)["logits"]
    with _leads() as leads:
        theirs = transformers_layers.logits(subject.hf(), prompt, positions, progress)
    return Comparison(float((ours - theirs).abs().max() / theirs.std()), min(leads))


@contextmanager
def _leads() -> Iterator[list[float]]:
    """The smallest lead of each router that transformers runs meanwhile."""
    from torch.nn.modules.module import register_module_forward_hook
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

    leads: list[float] = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        if isinstance(module, GptOssTopKRouter):
            scores = torch.nn.functional.linear(inputs[0].flatten(0, -2), module.weight, module.bias)
            best = scores.topk(module.top_k + 1, -1).values
            leads.append(float((best[:, -2] - best[:, -1]).min()))

    handle = register_module_forward_hook(note)
    try:
        yield leads
    finally:
        handle.remove()


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
    settings = {"packed_experts": True, "filled_by_checkpoint": True}
    model = inference.build_model(config, seq_length=length, dtype=torch.float32, **settings)
    inference.load_weights(model, nemo)
    save_file(given | {"logits": inference.logits(model, given["tokens"], given["positions"])}, file)
    inference.shutdown()


if __name__ == "__main__":
    in_megatron(Path(sys.argv[1]), Path(sys.argv[2]))
