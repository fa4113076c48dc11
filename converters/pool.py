"""Work on several tensors at once: one thread a core, a few of them; NumPy, torch and the kernels release the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

# Each holds one expert in a few forms (about 0.1 GB of gpt-oss): this bounds memory, and the disk is full long before.
WORKERS = max(2, min(8, len(os.sched_getaffinity(0))))


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
