"""The package's own trainings of the tiny recipe as a GPU would run them: stages, NeMo, optimizer, checkpoints, export.

bf16 with fp32 master weights, several tickets packed into a sequence, Transformer Engine's Adam under Megatron's
distributed optimizer; one process, then two by tensor, pipeline and expert parallelism. In fp32, without packing, the
same training runs on the local spec too.
"""

from __future__ import annotations

import csv
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data_prep.sample import sample_tickets
from recipes.finetuning import RECOMPUTED
from tests.training.trainings import Job, run_listed

SECONDS = 500
STEPS, EVERY = 4, 2
SETTINGS = (
    f"trainer.max_steps={STEPS}",
    f"trainer.val_check_interval={EVERY}",
    f"checkpoint.every_n_train_steps={EVERY}",
    "trainer.limit_val_batches=1",
    "data.micro_batch_size=1",
    "data.global_batch_size=2",
    # in Triton's interpreter it would take minutes; checks.model runs it
    "model.config.moe_permute_fusion=false",
)
BF16 = (
    *SETTINGS,
    "model.precision=bf16",
    "data.packed=true",
)
TWO = "trainer.devices=2"
PARALLEL = "trainer.strategy.{}_model_parallel_size=2"

GPU_JOBS = (
    Job("lora", BF16, source="tickets.csv"),
    Job("broken", BF16, source="tickets.csv", stop=("kill", 3)),
    Job("broken", BF16, source="tickets.csv"),
    Job("full", (*BF16, "peft=null"), source="tickets.csv"),
    Job("recomputed", (*BF16, *RECOMPUTED), source="tickets.csv"),
    Job("tensor", (*BF16, TWO, PARALLEL.format("tensor")), source="tickets.csv", ranks=2),
    Job("pipeline", (*BF16, TWO, PARALLEL.format("pipeline")), source="tickets.csv", ranks=2),
    Job("expert", (*BF16, TWO, PARALLEL.format("expert")), source="tickets.csv", ranks=2),
    Job("mxfp4", BF16, source="tickets.csv", packed=True),
    Job("mxfp4-expert", (*BF16, TWO, PARALLEL.format("expert")), source="tickets.csv", ranks=2, packed=True),
    Job("dense", (*BF16, "data.packed=false")),
    Job("context", (*BF16, "data.packed=false", TWO, "trainer.strategy.context_parallel_size=2"), ranks=2),
    Job("fp32", SETTINGS),
    Job("fp32-tensor", (*SETTINGS, TWO, PARALLEL.format("tensor")), ranks=2),
)
# NeMo's default on GPUs, which training on a CPU turns off
ASYNC_JOBS = (Job("async", (*BF16, "trainer.strategy.ckpt_async_save=true"), source="tickets.csv"),)
LOCAL_JOBS = (Job("fp32-local", SETTINGS),)


def run(folder: Path) -> dict[str, Any]:
    import megatron.core.dist_checkpointing.strategies.filesystem_async as filesystem_async

    from modeling import attention

    write_tickets(folder / "tickets.csv")
    os.chdir(folder)
    found = report(folder / "gpu", GPU_JOBS)
    for name in ("lora", "full"):
        found[name]["exported"] = exported(folder / "gpu" / name)
    filesystem_async._results_queue = None  # cpu_backend's stands in where nothing is saved by another process
    found |= report(folder / "async", ASYNC_JOBS)
    attention.this_machine = attention.Machine  # no GPU: the local spec
    return found | report(folder / "local", LOCAL_JOBS)


def write_tickets(file: Path) -> None:
    rows = sample_tickets()[:80]
    with file.open("w", newline="") as opened:
        table = csv.DictWriter(opened, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def report(folder: Path, jobs: tuple[Job, ...]) -> dict[str, Any]:
    """Run jobs; of the last start of each what became of it: status, figures of each step, checkpoint and export."""
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps({"source": "tickets.csv", "jobs": [asdict(job) for job in jobs]}))
    run_listed(folder / "jobs.json")
    found: dict[str, Any] = {}
    for number, (job, status) in enumerate(zip(jobs, json.loads((folder / "statuses.json").read_text()), strict=True)):
        history = folder / job.name / "finetune" / "history.jsonl"
        found[job.name] = {
            "status": status,
            "out": (folder / f"{number}.out").read_text()[-2000:],
            "history": [json.loads(line) for line in history.read_text().splitlines()] if history.is_file() else [],
            "checkpoints": sorted(path.name for path in (folder / job.name / "finetune" / "checkpoints").glob("*")),
        }
    return found


def exported(run: Path) -> dict[str, int]:
    """How many tensors the package exports from a run, and how many of them training has changed."""
    from converters.export_hf import export_checkpoint
    from pipeline.checkpoints import exported_parts
    from tests.converters.conftest import read_tensors

    parts = exported_parts(run)
    base = export_checkpoint(parts.like, run / "untrained", weights="bf16")
    tuned = export_checkpoint(parts.weights, run / "tuned", adapter=parts.adapter, like=parts.like, weights="bf16")
    before, after = read_tensors(base), read_tensors(tuned)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    return {"tensors": len(after), "changed": len(changed)}
