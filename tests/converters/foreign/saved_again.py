"""A model and its tokenizer loaded and saved by another transformers: `saved_again.py BASE TOKENS OUT`; prints nothing.

OUT gets the folder of the model, with the logits of the tokens in `logits.pt`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def main(base: str, tokens: str, out: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", dtype="auto")
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    torch.save(model.float().eval()(torch.load(tokens)).logits, Path(out) / "logits.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
