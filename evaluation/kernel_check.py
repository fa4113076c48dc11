"""The kernels of this machine in the layers that a training would run, forward and backward: right, and how fast."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from modeling import inference

# isort: split
# After the line above, which activates the CPU backend where there is no GPU: Megatron-core looks for CUDA on import.
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnBackend
from nemo.collections.llm.fn.base import walk
from safetensors.torch import save_file

from converters.hf_reader import HfReader
from converters.import_hf import import_checkpoint
from converters.mapping import TABLE, Place, layers_of
from converters.nemo_folder import WEIGHTS
from converters.storage.checked_folder import ensure_safe
from converters.toy_checkpoint import write_toy_checkpoint
from data_prep.harmony import CHAT_TEMPLATE, SPECIAL_TOKENS
from data_prep.tokenizer_corpus import sample_texts
from data_prep.toy_tokenizer import train_tokenizer
from evaluation.jobs import KernelJob, KernelReport
from modeling.attention import attention_backend, this_machine
from modeling.expert_lora import GptOssLoRA
from modeling.hf_config import FULL, SLIDING, GptOssConfig, find_config
from modeling.lora_targets import ATTENTION, EXPERTS, LoraTargets
from modeling.model_config import DTYPES
from planning.flops import Work, peak_flops, training_flops, visible_pairs

# Small, and lopsided: no two widths agree. Heads are as wide as gpt-oss's, for which attention kernels are chosen.
SMALL = {
    "num_hidden_layers": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 4,
    "hidden_size": 128,
    "intermediate_size": 96,
    "head_dim": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "sliding_window": 32,
    "vocab_size": 640,
}
LENGTHS = (37, 150, 69)  # of the packed sequences: within the window, and beyond it
LORA_RANK, WARM_UP, TIMED = 16, 2, 5


def check_kernels(job: KernelJob, out: Path) -> None:
    """Write a `KernelReport` to `out`, as JSON."""
    inference.initialize()
    machine = this_machine()
    backend = "local"
    if machine.capability is not None:
        backend = attention_backend(machine, packed=job.packed, precision=job.precision)
    settings = {} if machine.capability is None else {"attention_backend": AttnBackend[backend]}
    with tempfile.TemporaryDirectory() as folder:
        logits, gradients, packed = _right(job, Path(folder), settings)
    seconds, memory, mfu = _fast(job, settings)
    report = KernelReport(
        backend, logits, gradients, packed, seconds, job.seq_length / seconds, memory / 1e9, mfu
    )  # fmt: skip
    out.write_text(json.dumps(asdict(report)))


def _right(job: KernelJob, folder: Path, settings: dict[str, Any]) -> tuple[float, float, float | None]:
    """Differences to transformers: logits, gradients; and of packed sequences to each alone."""
    from transformers import AutoModelForCausalLM

    hf, nemo = folder / "hf", folder / "nemo"
    write_toy_checkpoint(hf, config=SMALL, weights="bf16", std=0.2)
    train_tokenizer(sample_texts(), hf, vocab_size=640, chat_template=CHAT_TEMPLATE, special_tokens=SPECIAL_TOKENS)
    import_checkpoint(hf, nemo)
    config = GptOssConfig.from_file(hf)
    model = inference.build_model(config, seq_length=256, dtype=DTYPES[job.precision], **settings)
    ensure_safe(nemo / WEIGHTS)
    inference.load_weights(model, nemo)
    reference = AutoModelForCausalLM.from_pretrained(
        hf, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    )
    tokens = torch.randint(3, config.vocab_size, (2, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference(tokens).logits
        logits = (inference.logits(model, tokens) - expected).abs().max() / expected.std()
        packed = _packed_difference(model, tokens, float(expected.std())) if job.packed else None
    return float(logits), _gradient_difference(model, reference, config, tokens, folder), packed


def _packed_difference(model: torch.nn.Module, tokens: torch.Tensor, spread: float) -> float:
    sequences = [tokens[0, :length] for length in LENGTHS]
    *inputs, packing = _packed_inputs(sequences)
    together = model(*inputs, packed_seq_params=packing)[0].float().cpu()
    alone = [inference.logits(model, sequence[None])[0] for sequence in sequences]
    return float((together - torch.cat(alone)).abs().max()) / spread


def _packed_inputs(sequences: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, None, PackedSeqParams]:
    device = _device()
    lengths = [len(sequence) for sequence in sequences]
    ends = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    longest: Any = torch.tensor(max(lengths), dtype=torch.int32)
    packing = PackedSeqParams("thd", ends, ends, max_seqlen_q=longest, max_seqlen_kv=longest)
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(device)
    return torch.cat(sequences)[None].to(device), positions, None, packing


def _gradient_difference(
    model: torch.nn.Module, reference: Any, config: GptOssConfig, tokens: torch.Tensor, folder: Path
) -> float:
    """The largest relative difference of a parameter's gradient; of transformers' own, in Megatron's layout."""
    labels = tokens.roll(-1, 1)
    loss = torch.nn.functional.cross_entropy(reference(tokens).logits.flatten(0, 1), labels.flatten())
    loss.backward()
    # as if they were weights, so that the one table says where each stands
    (folder / "gradients").mkdir()
    gradients = {name: parameter.grad.contiguous() for name, parameter in reference.named_parameters()}
    save_file(gradients, folder / "gradients" / "model.safetensors")
    (folder / "gradients" / "config.json").write_bytes((folder / "hf" / "config.json").read_bytes())
    reader = HfReader(folder / "gradients")
    model.train()
    _loss(model, tokens, labels).backward()
    found = dict(_gradients(model))
    differences = []
    for entry, layer in layers_of(config):
        experts = range(config.num_experts) if entry.per_expert else [None]
        for expert in experts:
            place = Place(tuple(index for index in (layer, expert) if index is not None) if entry.per_layer else ())
            expected = reader.read(entry, place).float()
            mine = found[entry.nemo, layer, expert].float().cpu()
            differences.append(float((mine - expected).norm() / (expected.norm() + 1e-12)))
    return max(differences)


def _loss(model: torch.nn.Module, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    device, length = _device(), tokens.shape[1]
    positions = torch.arange(length, device=device).expand(len(tokens), -1)
    return model(tokens.to(device), positions, None, labels=labels.to(device)).float().mean()


def _gradients(model: torch.nn.Module) -> Iterator[tuple[tuple[str, int, int | None], torch.Tensor]]:
    """Gradients by the table's key, layer and expert, whichever way the experts' weights are kept."""
    keys = {entry.nemo: entry for entry in TABLE}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        layer = int(found[1]) if (found := re.search(r"layers\.(\d+)\.", name)) else 0
        key = re.sub(r"layers\.\d+\.", "layers.", name).replace("mlp.experts.", "mlp.experts.experts.")
        key = key.replace("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight")
        one = re.fullmatch(
            r"(.*\.(?:weight|bias))(\d+)", key
        )  # Transformer Engine's grouped layer: weight0, weight1, …
        if one:
            yield (one[1], layer, int(one[2])), parameter.grad
        elif keys[key].per_expert:
            yield from (((key, layer, expert), gradient) for expert, gradient in enumerate(parameter.grad))
        else:
            yield (key, layer, None), parameter.grad


def _fast(job: KernelJob, settings: dict[str, Any]) -> tuple[float, int, float | None]:
    """Seconds and bytes of a LoRA step through the first layers of the real model, and its MFU."""
    whole = find_config(job.model)
    types = tuple((SLIDING, FULL)[i % 2] for i in range(job.layers))
    config = replace(whole, num_layers=job.layers, layer_types=types)
    model = inference.build_model(config, seq_length=job.seq_length, dtype=DTYPES[job.precision], **settings)
    model.requires_grad_(False)
    walk(model, GptOssLoRA(dim=LORA_RANK).transform)  # type: ignore[arg-type]
    model.to(_device()).train()
    tokens = torch.randint(3, config.vocab_size, (1, job.seq_length), generator=torch.Generator().manual_seed(0))
    lengths = [job.seq_length]
    step: Callable[[], torch.Tensor] = lambda: _loss(model, tokens, tokens.roll(-1, 1))  # noqa: E731
    if job.packed:
        lengths = [job.seq_length // 8] * 8  # as long as tickets are
        token_ids, positions, mask, packing = _packed_inputs(list(tokens[0, : sum(lengths)].split(lengths[0])))
        labels = token_ids.roll(-1, 1)
        step = lambda: model(token_ids, positions, mask, labels=labels, packed_seq_params=packing).float().mean()  # noqa: E731
    times = []
    for number in range(WARM_UP + TIMED):
        if number == WARM_UP and not inference.ON_CPU:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        model.zero_grad()
        step().backward()
        if not inference.ON_CPU:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    seconds = median(times[WARM_UP:])
    memory = 0 if inference.ON_CPU else torch.cuda.max_memory_allocated()
    peak = None if inference.ON_CPU else peak_flops(torch.cuda.get_device_name())
    full, windowed = visible_pairs(torch.tensor(lengths), config.sliding_window)
    work = Work(sum(lengths), float(full), float(windowed))
    lora = LoraTargets(LORA_RANK, (*ATTENTION, *EXPERTS))
    mfu = training_flops(config, work, lora).total / seconds / peak if peak else None
    return seconds, memory, mfu


def _device() -> torch.device:
    return torch.device("cpu") if inference.ON_CPU else torch.device("cuda", torch.cuda.current_device())
