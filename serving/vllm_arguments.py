"""What is served, and the command line of vLLM that fits it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from common.errors import CheckpointError, ConfigurationError
from data_prep.harmony import DATE
from modeling.hf_config import GptOssConfig, find_config
from modeling.layouts import Batch
from modeling.precision import Precision
from planning.memory import TrainingPlan, base_bytes
from planning.serving_memory import ServingPlan

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # vllm 0.32, CPUAttentionBackend


@dataclass(frozen=True)
class Servable:
    """A model that vLLM can load.

    Attributes:
        model: folder in Hugging Face's form, or the Hub id of an adapter's base.
        adapter: folder in PEFT's form, None for a whole model.
        rank: of the adapter.
        weights: bytes of the model.
    """

    model: str
    adapter: Path | None
    rank: int
    config: GptOssConfig
    weights: int

    @property
    def precision(self) -> Precision:
        stored = self.config.raw.get("dtype") or self.config.raw.get("torch_dtype")
        return "fp32" if stored == "float32" else "bf16"

    @property
    def folders(self) -> list[Path]:
        """What a container must see."""
        return [path for path in (Path(self.model), self.adapter) if path is not None and path.is_dir()]


def servable(folder: Path) -> Servable:
    """An exported folder, or an adapter beside the base that it names: a folder, or a published gpt-oss.

    Raises:
        CheckpointError: it is neither. ConfigurationError: the base is not known.
    """
    adapter_file = folder / "adapter_config.json"
    if not adapter_file.is_file():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} is neither an exported model nor a PEFT adapter: export the run first.")
        return _model(folder, None, 0)
    try:
        stated = json.loads(adapter_file.read_text(encoding="utf-8"))
        base = str(stated["base_model_name_or_path"])
        rank = max(map(int, [stated["r"], *stated.get("rank_pattern", {}).values()]))
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{adapter_file} names no base or no rank: export the adapter again.") from None
    if (Path(base) / "config.json").is_file():
        return _model(Path(base), folder.resolve(), rank)
    config = find_config(base.rpartition("/")[2])
    published = TrainingPlan(config, Batch(1), packed_experts=config.has_mxfp4)
    return Servable(base, folder.resolve(), rank, config, base_bytes(published))


def _model(folder: Path, adapter: Path | None, rank: int) -> Servable:
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if not weights:
        raise CheckpointError(f"{folder} holds no .safetensors: export the run again.")
    return Servable(str(folder.resolve()), adapter, rank, GptOssConfig.from_file(folder), weights)


def arguments(served: Servable, plan: ServingPlan, name: str, host: str, port: int, on_cpu: bool) -> list[str]:
    """The words behind `vllm`."""
    words = ["serve", served.model, "--host", host, "--port", str(port), "--max-model-len", str(plan.context)]
    words += ["--dtype", "float32" if served.precision == "fp32" else "bfloat16"]
    if plan.tensor > 1:
        words += ["--tensor-parallel-size", str(plan.tensor)]
    if on_cpu:
        words += ["--enforce-eager"]  # a compiler takes minutes for what a small model computes in none
    if served.adapter is None:
        return [*words, "--served-model-name", name]
    # vllm 0.32, LoRAConfig.max_lora_rank
    allowed = next((rank for rank in (8, 16, 32, 64, 128, 256, 320, 512) if rank >= served.rank), served.rank)
    return [*words, "--enable-lora", "--max-lora-rank", str(allowed), "--lora-modules", f"{name}={served.adapter}"]


def environment(plan: ServingPlan, on_cpu: bool) -> dict[str, str]:
    """Variables of the server's process."""
    # a chat's system message has today's date, unless told the trained one (vllm 0.32, get_system_message)
    variables = {"VLLM_SYSTEM_START_DATE": DATE, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if on_cpu:
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, -(-plan.cache // 2**30)))  # GiB
    return variables


def ensure_cpu_serves(served: Servable, flags: str) -> None:
    """Refuse what vLLM's CPU backend does not compute.

    Args:
        flags: of the processor, as /proc/cpuinfo lists them.
    Raises:
        ConfigurationError: of the adapter, the experts' format, the shapes or the processor.
    """
    config = served.config
    if "avx2" not in flags.split():
        raise ConfigurationError("this processor has no AVX2, which vLLM needs: serve on a GPU, or elsewhere.")
    if served.adapter is not None:
        raise ConfigurationError("vLLM has adapters on experts on GPUs only: export the merged model and serve that.")
    if config.has_mxfp4 and "amx_tile" not in flags.split():
        raise ConfigurationError(
            "vLLM reads MXFP4 on a CPU only with AMX, which this one has not: export with --weights bf16, or fp32."
        )
    if config.head_dim not in CPU_HEAD_SIZES or config.hidden_size % 32 or config.ffn_size % 32:
        raise ConfigurationError(
            f"vLLM takes on a CPU head_dim {', '.join(map(str, CPU_HEAD_SIZES[:6]))}, … and hidden and FFN sizes that "
            f"32 divides; this model has {config.head_dim}, {config.hidden_size} and {config.ffn_size}: serve on a GPU."
        )
