"""Groups of tickets that say the same, exactly or nearly: no group may stand on both sides of a split.

Near duplicates are found by MinHash over three-word shingles with banding (Broder 1997; Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, section 3.4), and every pair that banding proposes is checked on the shingles themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from zlib import crc32

import numpy as np

from data_prep.progress import Progress, quiet, told

BANDS, ROWS = 20, 4  # of pairs with 80 % of their shingles in common 0.003 % are missed, of those with 90 % none
SHINGLE = 3
PAIRS_AT_ONCE = 100_000


def near_duplicates(
    keys: np.ndarray, text: Callable[[int], str], threshold: float, progress: Progress = quiet
) -> np.ndarray:
    """Join tickets whose shingles overlap by at least `threshold` (Jaccard), and chains of such.

    Args:
        keys: uint64 (N,), all different; only they decide the order of work, so that the rows' order does not matter.
        text: the normalized words of ticket i.
    Returns:
        int64 (N,), equal for tickets of one group: the index of its smallest key.
    """
    parents = np.arange(len(keys))
    if threshold >= 1 or len(keys) < 2:
        return parents
    signatures = _signatures(len(keys), text, progress)
    shingles = lru_cache(maxsize=4096)(lambda index: _shingles(text(index)))

    def similar(a: int, b: int) -> bool:
        common = len(np.intersect1d(shingles(a), shingles(b), assume_unique=True))
        return common >= threshold * (len(shingles(a)) + len(shingles(b)) - common)

    for band in told(range(BANDS), "comparing bands", BANDS, progress):
        _join_band(signatures, signatures[:, band * ROWS : (band + 1) * ROWS], parents, similar, threshold)
    roots = _roots(parents)
    smallest = np.full(len(keys), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, roots, keys)
    order = np.argsort(keys)
    return order[np.searchsorted(keys, smallest[roots], sorter=order)]


def _shingles(words: str) -> np.ndarray:
    """Hashes of every three words in a row, uint32, sorted, each once; of a shorter text, of all its words."""
    found = words.split(" ")
    if len(found) <= SHINGLE:
        return np.array([crc32(words.encode())], np.uint32)
    hashes = np.array([crc32(word.encode()) for word in found], np.uint64)
    mixed = hashes[:-2] * np.uint64(0x9E3779B97F4A7C15) + hashes[1:-1] * np.uint64(0xC2B2AE3D27D4EB4F) + hashes[2:]
    return np.unique((mixed ^ (mixed >> np.uint64(29))).astype(np.uint32))


def _signatures(count: int, text: Callable[[int], str], progress: Progress) -> np.ndarray:
    """MinHash signatures, uint32 (N, BANDS · ROWS)."""
    from datasketch import MinHash

    sketch = MinHash(num_perm=BANDS * ROWS, seed=1, hashfunc=_same)
    signatures = np.empty((count, BANDS * ROWS), np.uint32)
    for index in told(range(count), "comparing tickets", count, progress):
        sketch.clear()
        sketch.update_batch(_shingles(text(index)).tolist())
        signatures[index] = sketch.hashvalues
    return signatures


def _same(value: int) -> int:
    return value


def _join_band(
    signatures: np.ndarray,
    band: np.ndarray,
    parents: np.ndarray,
    similar: Callable[[int, int], bool],
    threshold: float,
) -> None:
    """Check all pairs that agree in a band and are not in one group yet, and join those that are alike.

    Pairs are taken by their distance in the sorted band, so that a bucket of copies is one group after the first round.
    """
    # what the signatures estimate is wrong by more than 4 standard deviations in one of 30,000 pairs
    floor = threshold - 4 * (threshold * (1 - threshold) / (BANDS * ROWS)) ** 0.5
    roots = _roots(parents)
    order, buckets = _buckets(band)
    distance = 1
    while True:
        keep = _unfinished(roots[order], buckets, distance)
        order, buckets = order[keep], buckets[keep]
        if not len(order):
            return
        together = np.flatnonzero(buckets[distance:] == buckets[:-distance])
        together = together[roots[order[together]] != roots[order[together + distance]]]
        joined = False
        for chunk in np.array_split(together, len(together) // PAIRS_AT_ONCE + 1):
            left, right = order[chunk], order[chunk + distance]
            likely = (signatures[left] == signatures[right]).mean(axis=1) >= floor
            for a, b in zip(left[likely].tolist(), right[likely].tolist(), strict=True):
                if _root(parents, a) != _root(parents, b) and similar(a, b):
                    parents[_root(parents, b)] = _root(parents, a)
                    joined = True
        if joined:
            roots = _roots(parents)
        distance += 1


def _buckets(band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tickets sorted by what their signatures are in a band, and that as one number."""
    mixed = np.zeros(len(band), np.uint64)
    for column in band.T:
        mixed = (mixed ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
    order = np.argsort(mixed, kind="stable")
    return order, mixed[order]


def _unfinished(roots: np.ndarray, buckets: np.ndarray, distance: int) -> np.ndarray:
    """Where buckets stand that have pairs at this distance and are not all one group."""
    if not len(buckets):
        return np.zeros(0, bool)
    starts = np.flatnonzero(np.concatenate(([True], buckets[1:] != buckets[:-1])))
    sizes = np.diff(np.concatenate((starts, [len(buckets)])))
    several = np.minimum.reduceat(roots, starts) != np.maximum.reduceat(roots, starts)
    return np.repeat(several & (sizes > distance), sizes)


def _roots(parents: np.ndarray) -> np.ndarray:
    """The root of every ticket; paths are shortened on the way."""
    while True:
        shorter = parents[parents]
        if (shorter == parents).all():
            return shorter
        parents[:] = shorter


def _root(parents: np.ndarray, index: int) -> int:
    while (parent := int(parents[index])) != index:
        index = parent
    return index
