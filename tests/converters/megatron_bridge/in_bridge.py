"""What Megatron-Bridge 0.6.2 makes of our folders: `in_bridge.py FOLDER`.

FOLDER holds `hf`, `bridge` (bf16), `bridge32` (fp32), the adapter `adapter` and `tokens.pt`. Into it go `loaded.pt` and
`adapted.pt`, logits of `bridge32` without and with the adapter in Bridge's own LoRA; `imported` and `saved`,
checkpoints that Bridge wrote; and `report.json`. The model has Transformer Engine's layer spec, its kernels emulated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests.converters.megatron_bridge import environment

environment.bridge()

from megatron.bridge import AutoBridge  # noqa: E402
from megatron.bridge.peft.utils import load_peft_adapter_checkpoint  # noqa: E402
from megatron.bridge.training import checkpointing, model_load_save  # noqa: E402
from megatron.bridge.training.utils.checkpoint_utils import (  # noqa: E402
    get_hf_model_id_from_checkpoint,
    read_run_config,
    read_train_state,
)
from megatron.bridge.utils.instantiate_utils import instantiate  # noqa: E402


def logits(model: list[Any], tokens: torch.Tensor) -> torch.Tensor:
    batch, length = tokens.shape
    with torch.no_grad():
        return model[0](tokens, torch.arange(length).expand(batch, -1), None).float()


def load(root: Path) -> list[Any]:
    """A model by Bridge's own loader, as its root names the iteration; every key must be there, and none beside."""
    number, _ = checkpointing._resolve_checkpoint_iteration(str(root), None)
    iteration = checkpointing.get_checkpoint_name(str(root), number)
    config, _ = model_load_save.load_model_config(iteration)
    config.moe_permute_fusion = False  # a kernel of Triton's, whose interpreter takes 20 ms a program
    config.gradient_accumulation_fusion = False  # there are no buffers without Megatron's DDP
    model = model_load_save.build_and_load_model(iteration, config, use_cpu_init=True)
    checkpointing._load_model_weights_from_checkpoint(iteration, model, dist_ckpt_strictness="raise_all")
    return model


def adapted(root: Path, adapter: Path) -> list[Any]:
    """The model with Bridge's own LoRA, as the adapter's run config says."""
    model, iteration = load(root), adapter / "iter_0000000"
    peft = instantiate(read_run_config(str(iteration / "run_config.yaml"))["peft"])
    model = peft(model, training=False)
    peft.set_params_to_save(model)
    metadata = {"metadata": {"singleton_local_shards": False}}
    load_peft_adapter_checkpoint(model, iteration, peft, model_sd_kwargs=metadata)
    return model


def main(folder: Path) -> None:
    tokens = torch.load(folder / "tokens.pt")
    report: dict[str, Any] = {}
    with model_load_save.temporary_distributed_context("gloo"):
        torch.save(logits(load(folder / "bridge32"), tokens), folder / "loaded.pt")
        model = adapted(folder / "bridge32", folder / "adapter")
        torch.save(logits(model, tokens), folder / "adapted.pt")
        try:  # Bridge's own merge
            list(AutoBridge.from_hf_pretrained(str(folder / "hf")).export_hf_weights(model, cpu=True))
        except RuntimeError as error:
            report["merge"] = str(error)
        tokenizer = model_load_save.load_tokenizer(str(folder / "bridge" / "iter_0000000"))
        report["ids"] = tokenizer.tokenize("t3 t4")
        report["step"] = read_train_state(str(folder / "bridge" / "latest_train_state.pt")).step
        report["hub id"] = get_hf_model_id_from_checkpoint(folder / "bridge")
        model_load_save.save_megatron_model(load(folder / "bridge"), folder / "saved")
        AutoBridge.import_ckpt(str(folder / "hf"), str(folder / "imported"))
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
