"""Work on several tensors at once, in threads: NumPy, torch, the kernels and the disk release the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
# One more than cores, because some always wait for the disk. Each holds one expert in a few forms (0.15 GB of gpt-oss),
# which is what bounds memory; six are more than any disk keeps up with.
WORKERS = max(3, min(6, _CORES + 1))


def run_all(jobs: Iterable[Callable[[], object]]) -> None:
    """Run jobs on all cores; the first error ends it and is raised, jobs that have not begun are dropped."""
    with ThreadPoolExecutor(WORKERS) as pool:
        futures: list[Future[object]] = [pool.submit(job) for job in jobs]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
