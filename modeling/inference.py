"""Load a NeMo checkpoint, with or without an adapter, into a bare Megatron model and get logits from it.

No trainer, no optimizer: what evaluation and parity checks need, at any TP × EP × PP layout. Importing this module
activates the CPU backend where there is no GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from modeling import cpu_backend

ON_CPU = cpu_backend.activate()  # before NeMo and Megatron-core load: they look for CUDA then

from megatron.core import dist_checkpointing, parallel_state  # noqa: E402
from megatron.core.dist_checkpointing.validation import StrictHandling  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region  # noqa: E402
from nemo.collections.llm.fn.base import walk  # noqa: E402
from torch.distributed.checkpoint.api import CheckpointException  # noqa: E402

from common.errors import CheckpointError  # noqa: E402
from common.values import one_line  # noqa: E402
from modeling.hf_config import GptOssConfig  # noqa: E402
from modeling.layouts import Layout  # noqa: E402
from modeling.model_config import nemo_config  # noqa: E402

cpu_backend.stand_in_for_engine()
SINGLE = Layout()
# torch's CheckpointException, which a missing key ends in, is a BaseException and no Exception.
LOADING_ERRORS = (CheckpointException, dist_checkpointing.core.CheckpointingException, FileNotFoundError, KeyError)


def initialize(layout: Layout = SINGLE, seed: int = 1234) -> None:
    """Start torch.distributed (from torchrun's environment, or alone) and Megatron's process groups."""
    if not torch.distributed.is_initialized():
        backend = "gloo" if ON_CPU else "nccl"
        if not ON_CPU:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        if "RANK" in os.environ:
            torch.distributed.init_process_group(backend)
        else:  # a store in memory: no port that another process could take meanwhile
            torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    torch.manual_seed(seed)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=1,
    )


def shutdown() -> None:
    """Leave the process groups; another `initialize` may follow."""
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def build_model(config: GptOssConfig, *, seq_length: int, dtype: torch.dtype, **overrides: Any) -> torch.nn.Module:
    """This rank's part of the model, in evaluation mode, weights not loaded.

    Raises:
        RuntimeError: `initialize` was not called.
    """
    arguments: dict[str, Any] = {
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "expert_model_parallel_size": parallel_state.get_expert_model_parallel_world_size(),
        "expert_tensor_parallel_size": 1,
    }
    arguments["sequence_parallel"] = arguments["tensor_model_parallel_size"] > 1
    model = nemo_config(config, seq_length=seq_length, dtype=dtype, **(arguments | overrides))
    return model.configure_model(tokenizer=None).to(dtype).eval()


def load_weights(model: torch.nn.Module, checkpoint: Path) -> None:
    """Fill the model from a NeMo checkpoint, whatever layout it was saved at.

    Megatron's loader unpickles: of a foreign checkpoint only what `converters.storage.checked_folder` has let pass.

    Raises:
        CheckpointError: a weight is missing in the checkpoint.
    """
    _load(model, checkpoint, lambda name: True)


def load_adapter(model: torch.nn.Module, peft: Callable[..., Any], checkpoint: Path) -> None:
    """Put a PEFT transform's adapters into the model and fill them, and trained routers, from an adapter checkpoint.

    Raises:
        CheckpointError: an adapter weight is missing in the checkpoint.
    """
    walk(model, peft.transform)  # type: ignore[attr-defined]
    model.eval()
    router = getattr(peft, "train_router", False)
    _load(model, checkpoint, lambda name: ".adapter." in name or (router and ".router." in name))


def _load(model: torch.nn.Module, checkpoint: Path, wanted: Callable[[str], bool]) -> None:
    sharded = {name: value for name, value in model.sharded_state_dict(prefix="module.").items() if wanted(name)}  # type: ignore[operator]
    # Transformer Engine's extra state holds FP8 scales: nothing that inference in bf16 or fp32 reads.
    sharded = {name: value for name, value in sharded.items() if "_extra_state" not in name}
    weights = checkpoint / "weights"
    try:
        # Strict about what the model wants; a checkpoint may hold more (optimizer state, Transformer Engine's).
        loaded = dist_checkpointing.load(sharded, str(weights), strict=StrictHandling.RAISE_UNEXPECTED)
    except LOADING_ERRORS as error:
        raise CheckpointError(f"{weights} does not hold this model ({one_line(error)}): import it again.") from error
    state = {name.removeprefix("module."): value for name, value in loaded.items()}  # pyright: ignore[reportAttributeAccessIssue]
    missing = [name for name in model.load_state_dict(state, strict=False).missing_keys if wanted(name)]
    missing = [name for name in missing if "_extra_state" not in name and ("adapter" in name) == wanted(".adapter.")]
    if missing:
        raise CheckpointError(f"{weights} lacks {len(missing)} weights, such as {missing[0]}: import it again.")


@torch.no_grad()
def logits(model: torch.nn.Module, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of a batch, on every rank.

    Args:
        tokens: int64 (B, S); pad on the right, attention is causal.
        positions: int64 (B, K), where logits are wanted; None for everywhere.
    Returns:
        fp32 (B, S, V), or (B, K, V) with `positions`.
    """
    batch, length = tokens.shape
    multiple = parallel_state.get_tensor_model_parallel_world_size()
    padded = torch.nn.functional.pad(tokens, (0, -length % multiple))  # sequence parallelism splits S by TP
    device = torch.device("cpu") if ON_CPU else torch.device("cuda", torch.cuda.current_device())
    padded = padded.to(device)
    position_ids = torch.arange(padded.shape[1], device=device).expand(batch, -1)

    def step(_: Any, chunk: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., torch.Tensor]]:
        return chunk(padded, position_ids, None), lambda output, non_loss_data: output

    with _output_at(model, positions if multiple == 1 else None):
        collected = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=None,  # pyright: ignore[reportArgumentType]
            model=model,
            num_microbatches=1,
            seq_length=padded.shape[1],
            micro_batch_size=batch,
            forward_only=True,
            collect_non_loss_data=True,
        )
    vocab = model.vocab_size  # type: ignore[attr-defined]
    width = length if positions is None else positions.shape[1]
    if parallel_state.is_pipeline_last_stage():
        output = collected[0]
        if positions is not None and multiple > 1:
            output = output[torch.arange(batch)[:, None], positions.to(device)]
        if output.shape[-1] != vocab:
            output = gather_from_tensor_model_parallel_region(output)
        output = output[:, :width].float().contiguous()
    else:
        output = torch.empty(batch, width, vocab, device=device)  # pyright: ignore[reportArgumentType]
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        source = parallel_state.get_pipeline_model_parallel_last_rank()
        torch.distributed.broadcast(output, source, group=parallel_state.get_pipeline_model_parallel_group())  # pyright: ignore[reportArgumentType]
    return output.cpu()


@contextmanager
def _output_at(model: torch.nn.Module, positions: torch.Tensor | None) -> Iterator[None]:
    """Have the output layer compute logits at `positions` (B, K) only.

    Not under sequence parallelism, whose output layer wants the hidden states of all tokens to gather them.
    """
    if positions is None or not hasattr(model, "output_layer"):
        yield
        return

    def pick(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = args[0]  # (S, B, H)
        where = positions.T.to(hidden.device)
        return (hidden[where, torch.arange(hidden.shape[1], device=hidden.device)], *args[1:])

    handle = model.output_layer.register_forward_pre_hook(pick)  # type: ignore[operator,union-attr]
    try:
        yield
    finally:
        handle.remove()
