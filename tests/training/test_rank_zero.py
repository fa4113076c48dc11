"""Two processes of a torchrun, with its store and with rank 0's: the later rank learns what rank 0 found."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, free_port, run_to_its_end

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
PROCESS = """
import os, sys, time
from pathlib import Path
import torch.distributed as dist
from training.rank_zero import by_rank_zero

rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
if rank != int(sys.argv[2]):
    time.sleep(2)

def take() -> list[str]:
    names = [path.name for path in folder.glob("step=*")]
    for name in names:
        (folder / name).rename(folder / f"taken by {rank}, {name}")
    return names

seen = by_rank_zero("first", take), by_rank_zero("second", take)
dist.init_process_group("gloo")
every = [None, None]
dist.all_gather_object(every, seen)
dist.destroy_process_group()
(folder / f"{rank}.txt").write_text(repr(every))
"""


@pytest.mark.parametrize("early", [0, 1])
@pytest.mark.parametrize("agent", [True, False], ids=["torchrun", "no agent"])
def test_rank_zero_looks_and_all_know(tmp_path: Path, early: int, agent: bool) -> None:
    (tmp_path / "step=3").mkdir()
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    arguments = [str(script), str(tmp_path), str(early)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    if agent:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments]
    else:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
        start = "RANK={} {} {} & "
        both = "".join(start.format(rank, sys.executable, " ".join(map(repr, arguments))) for rank in (0, 1))
        command = ["bash", "-c", f"{both} wait -n && wait -n"]
    done = run_to_its_end(command, env=environment, timeout=90, cwd=tmp_path)
    assert done.status == 0, done.err
    known = repr([(["step=3"], [])] * 2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == [known, known]
    assert (tmp_path / "taken by 0, step=3").is_dir()
