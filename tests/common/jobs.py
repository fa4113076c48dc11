"""Jobs for torchrun on plain torch, for the tests of both their ends."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from common.console import rank, say
from common.errors import DataError


@dataclass(frozen=True)
class Addend:
    """A number and what it is multiplied by."""

    value: float
    times: int = 1


@dataclass(frozen=True)
class AddUp:
    """Each rank's addend, added up over all; `end` is what becomes of the rank `ends`."""

    target: ClassVar[str] = "tests.common.jobs:add_up"
    addends: tuple[Addend, ...]
    folder: Path
    ends: int = 0
    end: Literal["well", "bug", "refusal", "silence"] = "well"


def add_up(job: AddUp, out: Path) -> None:
    """Write the sum on rank 0; every rank leaves its own in the job's folder."""
    print(f"a library greets from rank {rank()}")
    torch.distributed.init_process_group("gloo")
    if rank() == job.ends and job.end == "bug":
        raise RuntimeError(f"rank {rank()} is broken")
    if rank() == job.ends and job.end == "refusal":
        raise DataError("tickets.csv holds no tickets: name another file.")
    mine = job.addends[rank()]
    total = torch.tensor(mine.value * mine.times, dtype=torch.float64)
    torch.distributed.all_reduce(total)
    (job.folder / f"{rank()}.json").write_text(json.dumps(total.item()))
    if rank() == 0 and job.end != "silence":
        say(f"{torch.distributed.get_world_size()} ranks added up")
        out.write_text(json.dumps(total.item()))
    torch.distributed.destroy_process_group()
