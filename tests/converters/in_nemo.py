"""What real NeMo makes of our checkpoints; run by torchrun: `in_nemo.py TASK FOLDER TP,EP,PP …`.

FOLDER holds `nemo` and `packed` (our imports), adapters in `adapter-*`, and `tokens.pt`; results go into it from
rank 0.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch

from modeling import inference
from modeling.hf_config import GptOssConfig
from modeling.inference import Layout
from modeling.model_config import _WITHOUT_GPU


def save(result: object, file: Path) -> None:
    if torch.distributed.get_rank() == 0:
        torch.save(result, file)


def logits(folder: Path, layout: Layout) -> None:
    """Logits of both imports, and of them with each adapter, by the PEFT transform of the adapter's context."""
    from megatron.core import parallel_state
    from nemo.lightning import io

    inference.initialize(layout)
    config = GptOssConfig.from_file(folder / "nemo" / "context" / "hf_config.json")
    tokens = torch.load(folder / "tokens.pt")
    found = {}
    for base, adapter in product(("nemo", "packed"), (None, *sorted(folder.glob("adapter-*")))):
        settings = {"packed_experts": base == "packed", "decoded_expert_bytes": 40_000}  # two experts at a time, or one
        model = inference.build_model(config, seq_length=64, dtype=torch.float32, **settings)
        inference.load_weights(model, folder / base)
        if adapter:
            peft: Any = io.load_context(adapter / "context", "model.model_transform")
            inference.load_adapter(model, peft, adapter)
        found[base, adapter.name if adapter else "base"] = inference.logits(model, tokens)
    save(found, folder / f"logits-{layout.tensor}-{layout.expert}-{layout.pipeline}.pt")
    parallel_state.destroy_model_parallel()


def for_the_cpu(model: Any, dtype: torch.dtype) -> Any:
    """NeMo's model as `load_context` gives it, with the modules and the precision that run here."""
    for name, value in {**_WITHOUT_GPU, "params_dtype": dtype, "bf16": dtype == torch.bfloat16}.items():
        setattr(model.config, name, value)
    model.config.pipeline_dtype = model.config.autocast_dtype = dtype
    return model


def resume(folder: Path, layout: Layout) -> None:
    """Logits of the models of `io.load_context`, restored by `nl.AutoResume(nl.RestoreConfig)` through a trainer."""
    save([_resumed(folder, base, layout) for base in ("nemo", "packed")], folder / "resumed.pt")


def _resumed(folder: Path, base: str, layout: Layout) -> tuple[list[int], torch.Tensor]:
    from lightning.pytorch.trainer.states import TrainerFn
    from nemo import lightning as nl
    from nemo.lightning import io

    model = for_the_cpu(io.load_context(folder / base / "context", "model"), torch.float32)
    strategy = nl.MegatronStrategy(
        tensor_model_parallel_size=layout.tensor,
        expert_model_parallel_size=layout.expert,
        pipeline_model_parallel_size=layout.pipeline,
        expert_tensor_parallel_size=1,
        sequence_parallel=layout.tensor > 1,
        pipeline_dtype=torch.float32,
        process_group_backend="gloo",
        setup_optimizers=False,
    )
    world = layout.tensor * layout.pipeline * layout.expert
    trainer = nl.Trainer(devices=world, accelerator="cpu", strategy=strategy, logger=False, enable_checkpointing=False)
    resume = nl.AutoResume(restore_config=nl.RestoreConfig(path=str(folder / base), load_optim_state=False))
    resume.setup(trainer, model)
    strategy.connect(model)
    strategy.setup_environment()
    if not model.state_dict():
        model.configure_model()
    trainer.state.fn = TrainerFn.TESTING
    strategy.setup(trainer)
    (chunk,) = strategy.megatron_parallel
    module: Any = chunk.module
    found = inference.logits(module.eval(), torch.load(folder / "tokens.pt"))
    return model.tokenizer.text_to_ids("t3 t4"), found


def merge(folder: Path, layout: Layout) -> None:
    """`llm.peft.merge_lora` of `adapter-attention`; the merged checkpoint is `merged`."""
    from nemo.collections.llm.peft import api

    load = api._load_base_model_and_lora

    def load_for_the_cpu(path: Path) -> Any:
        model, lora = load(path)
        return for_the_cpu(model, torch.bfloat16), lora

    api._load_base_model_and_lora = load_for_the_cpu  # type: ignore[assignment]
    api.merge_lora(str(folder / "adapter-attention"), str(folder / "merged"))


if __name__ == "__main__":
    task, folder, *layouts = sys.argv[1:]
    for sizes in layouts:
        {"logits": logits, "resume": resume, "merge": merge}[task](Path(folder), Layout(*map(int, sizes.split(","))))
