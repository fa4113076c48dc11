"""A process that no torchrun started is alone, whatever its surroundings say of ranks."""

from __future__ import annotations

import os

import pytest

from common.console import ignore_other_launchers, rank

ALLOCATION = {"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_JOB_ID": "1", "RANK": "3", "WORLD_SIZE": "8"}
OTHERS = {"MASTER_ADDR": "cn04", "MASTER_PORT": "29500", "PMI_RANK": "3", "OMPI_COMM_WORLD_RANK": "3"}


@pytest.mark.parametrize("torchrun", [False, True])
def test_ranks_of_others(torchrun: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (ALLOCATION | OTHERS).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    ignore_other_launchers()
    assert {name for name in ALLOCATION | OTHERS if name in os.environ} == (
        set(ALLOCATION | OTHERS) if torchrun else set()
    )
    assert rank() == (3 if torchrun else 0)
