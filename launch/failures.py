"""Why a stage failed, in one sentence, from the log of the stage and its executor."""

from __future__ import annotations

from pathlib import Path

from common.disk import is_full
from pipeline.run_folder import RunFolder

NOISE = ("ChildFailedError", "SignalException")  # torchrun's own: it only passes on that a worker failed
MEMORY = (
    "was killed for memory: give it more (cluster.slurm.mem=…, or a larger machine), "
    "or lower data.micro_batch_size or data.seq_length"
)


def last_error(text: str) -> str | None:
    """The last line of a log that tells what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("error: ")]
    others = [line for line in lines if _is_exception(line)]
    reasons = ours or others or [line for line in lines if line.startswith(("srun: error: ", "slurmstepd: error: "))]
    return reasons[-1].removeprefix("error: ") if reasons else None


def _is_exception(line: str) -> bool:
    name = line.partition(":")[0].rpartition(".")[2]
    return ": " in line and name.isidentifier() and name.endswith(("Error", "Exception")) and name not in NOISE


def read(file: Path) -> str:
    """The end of a log; empty where there is none."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - (1 << 20)))
            return log.read().decode(errors="replace")
    except OSError:
        return ""


def is_told(run: RunFolder, stage: str) -> bool:
    """Whether a stage said itself what is wrong: it would fail again."""
    return any(line.startswith("error: ") for line in read(run.log(stage)).splitlines())


def out_of_memory(text: str) -> bool:
    """Whether a log says that the kernel or CUDA ran out of memory."""
    return "oom_kill" in text or "oom-kill" in text or "OutOfMemoryError" in text or "Signal 9 (SIGKILL)" in text


def sentence(run: RunFolder, stage: str, exit_code: int | None = None) -> str:
    """The sentence about a failed stage: its reason, its log, and that nothing finished is lost."""
    log = run.log(stage)
    text = read(log)
    reason = last_error(text)
    if reason is None and is_full(run.path):
        reason = f"failed: no space is left in {run.path}, make room there"
    elif reason is None or out_of_memory(text):
        # Python tells before it ends; a process that says nothing was killed, mostly by the kernel's memory killer
        reason = MEMORY if reason is None or out_of_memory(text) else reason
        return f"stage {stage} {reason}.\nIts whole log is {log}; the same command goes on from what is finished."
    return f"stage {stage} failed: {reason}\nIts whole log is {log}; the same command goes on from what is finished."
