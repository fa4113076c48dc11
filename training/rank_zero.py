"""What rank 0 finds out for all ranks, before NeMo makes their process group."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TypeVar

from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from common.console import rank

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)


def by_rank_zero(name: str, find_out: Callable[[], T]) -> T:
    """Call `find_out` on rank 0 alone, and return what it returned, a value that JSON can hold, on every rank.

    Raises:
        torch.distributed.DistStoreError: rank 0 has not answered within `PATIENCE`.
    """
    store = _store()
    if store is None:
        return find_out()
    if rank() == 0:
        store.set(name, json.dumps(find_out()))
    return json.loads(store.get(name))


@cache  # where torchrun's agent keeps no store, the process of rank 0 does: until the last rank has read
def _store() -> Store | None:
    """The store that the ranks of this start share; None for a process that is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    shared, _, _ = next(rendezvous("env://"))
    store = PrefixStore("rank_zero", shared)
    store.set_timeout(PATIENCE)
    return store
