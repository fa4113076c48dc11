"""Trainings of the tiny recipe, forked from one process that has imported NeMo: seconds each instead of twenty.

`python trainings.py JOBS.json` runs the jobs one after another; each is a run folder of the recipe whose stages before
fine-tuning are shared.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tests.conftest import REPOSITORY, free_port, run_to_its_end

RECIPE = REPOSITORY / "recipes" / "gpt_oss_tiny_lora.py"
SHARED = ("model", "data", "base", "stages")
SMALL = (
    "pretraining=null",
    "model.experts=bf16",
    "model.toy.num_hidden_layers=2",
    "model.toy.num_attention_heads=10",  # of no width are there two: see tests.shapes
    "data.seq_length=160",
    "data.prepare.instruction=Route the ticket.",
    "data.packed=false",
    "data.micro_batch_size=2",
    "data.global_batch_size=4",
    "trainer.log_every_n_steps=1",
    "optim.config.lr=4e-3",
    "optim.lr_scheduler.min_lr=4e-4",
    "trainer.devices=1",
    "trainer.strategy.expert_model_parallel_size=1",
)


@dataclass(frozen=True)
class Job:
    """One start of the finetune stage of run `name`.

    Attributes:
        stop: after this step's callbacks were called, how the run is interrupted: as a cluster does (SIGTERM), or dead.
        source: data that this run prepares for itself, with a model of its own.
        packed: whether this run's experts stay MXFP4, in a base that it imports for itself.
        after: stages that run after fine-tuning.
        damage: what happened to the last checkpoint before this start.
    """

    name: str
    overrides: tuple[str, ...] = ()
    ranks: int = 1
    stop: tuple[Literal["term", "kill"], int] | None = None
    source: str = ""
    packed: bool = False
    after: tuple[str, ...] = ()
    damage: Literal["flip", "tear", ""] = ""


@dataclass(frozen=True)
class Done:
    """What became of a job: exit status of rank 0, and what the console showed."""

    run: Path
    status: int
    out: str

    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / "finetune" / "history.jsonl").read_text().splitlines()]


def train(folder: Path, source: str, jobs: list[Job]) -> list[Done]:
    """Run the jobs in `folder`, all of them fine-tuning on the tickets of `source`."""
    listed = folder / "jobs.json"
    listed.write_text(json.dumps({"source": source, "jobs": [asdict(job) for job in jobs]}))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, str(listed)]
    done = run_to_its_end(command, env=environment, timeout=580, cwd=folder)
    assert done.status == 0, done.out[-2000:] + done.err[-4000:]
    statuses = json.loads((folder / "statuses.json").read_text())
    return [
        Done(folder / job.name, status, (folder / f"{number}.out").read_text())
        for number, (job, status) in enumerate(zip(jobs, statuses, strict=True))
    ]


def main() -> None:
    """The process that imports NeMo, and forks."""
    run_listed(Path(sys.argv[1]))


def run_listed(listed: Path) -> None:
    """Run the jobs of a file that `train` wrote."""
    folder, plan = listed.parent, json.loads(listed.read_text())
    shared = _run(folder / "before", plan["source"], [])
    for stage in ("model", "prepare", "import"):
        assert _forked([partial(_stage, shared, stage)], folder / f"{stage}.out") == 0, stage
    import training.train  # noqa: F401 - what takes the time

    statuses = []
    for number, job in enumerate(plan["jobs"]):
        experts = ["model.experts=mxfp4"] if job["packed"] else []
        run = _run(folder / job["name"], job["source"] or plan["source"], [*job["overrides"], *experts])
        for part in SHARED:
            if not (run.path / part).exists():
                shutil.copytree(shared.path / part, run.path / part)
        # the toy's tokenizer learns its words from the tickets, so other tickets make another model
        own = ["model", "prepare", "import"] if job["source"] else ["import"] if job["packed"] else []
        for stage in own:
            assert _forked([partial(_stage, run, stage)], folder / f"{number}.out") == 0
        # a run that is started again is one that ended, if it did, before that was recorded
        (run.path / "stages" / "finetune.json").unlink(missing_ok=True)
        if job["damage"]:
            _damage(run, job["damage"])
        port = free_port()
        ranks = [partial(_rank, run, job, rank, port) for rank in range(job["ranks"])]
        status = _forked(ranks, folder / f"{number}.out")
        for stage in job["after"]:
            status = status or _forked([partial(_stage, run, stage)], folder / f"{number}.out")
        statuses.append(status)
    (folder / "statuses.json").write_text(json.dumps(statuses))


def _run(path: Path, source: str, overrides: list[str]) -> Any:
    from pipeline.loading import make_run, write_run

    run = make_run(RECIPE, [*SMALL, f"data.source={source}", f"name={path.name}", *overrides], path.parent)
    write_run(run)
    return run


def _rank(run: Any, job: dict[str, Any], rank: int, port: int) -> None:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["ranks"], "LOCAL_WORLD_SIZE": job["ranks"]}
    os.environ |= {name: str(value) for name, value in ranks.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "forked"}
    if job["stop"]:
        _stop_after(*job["stop"])
    _stage(run, "finetune")


def _stage(run: Any, name: str) -> None:
    """What `python -m stages` does."""
    from stages import __main__

    sys.argv = ["stage", str(run.path), name]
    os._exit(__main__.main())


def _damage(run: Any, how: str) -> None:
    """Flip a bit of the last checkpoint's largest file, or cut off its end."""
    from pipeline.checkpoints import last_checkpoint

    weights = last_checkpoint(run.path / "finetune") / "weights"
    file = max(weights.glob("*.distcp"), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    if how == "flip":
        content[content.index(b"data/0") + 400] ^= 16  # within the first tensor: its file's header has 64 bytes
    file.write_bytes(content if how == "flip" else content[: len(content) // 2])


def _stop_after(how: str, step: int) -> None:
    """Have this process interrupted at the end of a step."""
    from training.callbacks.preemption import SaveOnSigterm

    original = SaveOnSigterm.on_train_batch_end

    def interrupted(self: Any, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM if how == "term" else signal.SIGKILL)
        original(self, trainer, *arguments)

    SaveOnSigterm.on_train_batch_end = interrupted  # type: ignore[method-assign]


def _forked(bodies: list[Callable[[], None]], out: Path) -> int:
    """Run each body in a process of its own, all at once; the first one's exit status, or minus its signal."""
    children = []
    for body in bodies:
        child = os.fork()
        if child == 0:
            with out.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            try:
                body()
            finally:
                os._exit(70)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return statuses[0]


if __name__ == "__main__":
    main()
