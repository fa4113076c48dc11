"""Run checks, each in processes forked from one that has imported everything: `worker.py FOLDER CHECK…`.

A check is a module of `checks`: its `run(folder)` returns what it measured, which goes to FOLDER/CHECK.json; what it
prints goes to FOLDER/CHECK.out. A module with RANKS runs in so many processes, which find each other as torchrun's do.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.conftest import free_port


def main() -> None:
    """The process that imports, and forks."""
    os.environ |= {"TRITON_INTERPRET": "1"}  # torch imports Triton, whose library of functions reads this then
    from tests.gpu_path import emulation

    folder, names = Path(sys.argv[1]), sys.argv[2:]
    emulation.activate()
    import modeling.inference  # noqa: F401 - what takes the time

    for name in names:
        started = time.perf_counter()
        status = _in_processes(name, folder)
        print(f"{name}: status {status}, {time.perf_counter() - started:.0f} s", flush=True)


def _in_processes(name: str, folder: Path) -> int:
    module: Any = importlib.import_module(f"tests.gpu_path.checks.{name}")
    ranks = getattr(module, "RANKS", 1)
    port = free_port()
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            _rank(module, name, folder, {"RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port})
        children.append(child)
    return max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children)


def _rank(module: Any, name: str, folder: Path, environment: dict[str, int]) -> None:
    """The forked process; never returns."""
    os.environ |= {key: str(value) for key, value in environment.items()} | {"MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"LOCAL_RANK": os.environ["RANK"], "LOCAL_WORLD_SIZE": os.environ["WORLD_SIZE"]}
    with (folder / f"{name}.out").open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.dump_traceback_later(getattr(module, "SECONDS", 60), exit=True)  # ranks that wait for each other
    status = 1
    try:
        own = folder / name
        own.mkdir(exist_ok=True)
        found = module.run(own)
        if environment["RANK"] == 0:
            (folder / f"{name}.json").write_text(json.dumps(found))
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
