"""What a foreign PEFT makes of adapters: `peft_jobs.py JOBS.json`, with another version's folder in PYTHONPATH.

A job names `base`, `adapter`, `tokens` and `logits` (files of torch.save); with `settings`, fields of LoraConfig, the
adapter is made, filled at random and saved, else it is loaded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


def run(job: dict[str, Any]) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(job["base"], attn_implementation="eager", dtype=torch.float32)
    if "settings" in job:
        model = get_peft_model(loaded.eval(), LoraConfig(task_type="CAUSAL_LM", **job["settings"]))
        fill(model)
    else:
        model = PeftModel.from_pretrained(loaded.eval(), job["adapter"]).eval()
        empty = [name for name, value in model.named_parameters() if "lora_B" in name and not value.any()]
        assert not empty, f"PEFT leaves an adapter that it does not find at zero: {empty[0]}"
    with torch.no_grad():
        torch.save(model(torch.load(job["tokens"])).logits, job["logits"])
    if "settings" in job:
        model.save_pretrained(job["adapter"])


@torch.no_grad()
def fill(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text()):
        run(each)
