"""Groups of exact and near duplicates among tickets: no group may stand on both sides of a split.

Near duplicates are found by MinHash over three-word shingles with banding (Broder 1997; Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, section 3.4), and every pair that banding proposes is checked on the shingles themselves.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from zlib import crc32

import numba
import numpy as np

from common.progress import Progress, quiet, reported

BANDS, ROWS = 20, 4  # of pairs with 80 % of their shingles in common 0.003 % are missed, of those with 90 % none
SHINGLE = 3


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
    signatures, shingles, ends = _sketch(len(keys), text, progress)
    for band in reported(range(BANDS), "comparing bands", BANDS, progress):
        columns = np.ascontiguousarray(signatures[:, band * ROWS : (band + 1) * ROWS])
        _join_band(signatures, columns, parents, shingles, ends, threshold)
    roots = _roots(parents)
    smallest = np.full(len(keys), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, roots, keys)
    order = np.argsort(keys)
    return order[np.searchsorted(keys, smallest[roots], sorter=order)]


def _shingles(words: str) -> np.ndarray:
    """Hashes of every three words in a row, uint32, sorted, each once; of a shorter text, of all its words."""
    tokens = words.split(" ")
    if len(tokens) <= SHINGLE:
        return np.array([crc32(words.encode())], np.uint32)
    hashes = np.array([crc32(word.encode()) for word in tokens], np.uint64)
    mixed = hashes[:-2] * np.uint64(0x9E3779B97F4A7C15) + hashes[1:-1] * np.uint64(0xC2B2AE3D27D4EB4F) + hashes[2:]
    return np.unique((mixed ^ (mixed >> np.uint64(29))).astype(np.uint32))


def _sketch(count: int, text: Callable[[int], str], progress: Progress) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MinHash signatures, uint32 (N, BANDS · ROWS); all tickets' shingles in one row, and where each ticket's end."""
    from datasketch import MinHash

    sketch = MinHash(num_perm=BANDS * ROWS, seed=1, hashfunc=_same)
    signatures = np.empty((count, BANDS * ROWS), np.uint32)
    ends = np.zeros(count + 1, np.int64)
    row = array("I")
    for index in reported(range(count), "comparing tickets", count, progress):
        shingles = _shingles(text(index))
        sketch.clear()
        sketch.update_batch(shingles.tolist())
        signatures[index] = sketch.hashvalues
        row.frombytes(shingles.tobytes())
        ends[index + 1] = len(row)
    return signatures, np.frombuffer(row, np.uint32), ends


def _same(value: int) -> int:
    return value


def _join_band(
    signatures: np.ndarray,
    band: np.ndarray,
    parents: np.ndarray,
    shingles: np.ndarray,
    ends: np.ndarray,
    threshold: float,
) -> None:
    """Check all pairs that agree in a band and are not in one group yet, and join those that are alike.

    Pairs are taken by their distance in the sorted band, so that a bucket of copies is one group after the first round.
    """
    # what the signatures estimate is wrong by more than 4 standard deviations in one of 30,000 pairs
    floor = threshold - 4 * (threshold * (1 - threshold) / (BANDS * ROWS)) ** 0.5
    order, buckets = _buckets(band)
    distance = 1
    while True:
        keep = _unfinished(_roots(parents)[order], buckets, distance)
        order, buckets = order[keep], buckets[keep]
        if not len(order):
            return
        _join_pairs(order, buckets, distance, signatures, int(floor * BANDS * ROWS), parents, shingles, ends, threshold)
        distance += 1


@numba.njit(cache=True)
def _join_pairs(
    order: np.ndarray,
    buckets: np.ndarray,
    distance: int,
    signatures: np.ndarray,
    floor: int,
    parents: np.ndarray,
    shingles: np.ndarray,
    ends: np.ndarray,
    threshold: float,
) -> None:
    """Join pairs at this distance: `floor` of the signatures' numbers agree, and enough shingles are common."""
    for place in range(len(order) - distance):
        a, b = order[place], order[place + distance]
        if buckets[place] != buckets[place + distance] or _root(parents, a) == _root(parents, b):
            continue
        agree = 0
        for column in range(signatures.shape[1]):
            agree += signatures[a, column] == signatures[b, column]
        if agree < floor:
            continue
        common = _common(shingles[ends[a] : ends[a + 1]], shingles[ends[b] : ends[b + 1]])
        if common >= threshold * (ends[a + 1] - ends[a] + ends[b + 1] - ends[b] - common):
            parents[_root(parents, b)] = _root(parents, a)


@numba.njit(cache=True)
def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many numbers two sorted rows, each without repeats, have in common."""
    i = j = common = 0
    while i < len(a) and j < len(b):
        common += a[i] == b[j]
        step = a[i] <= b[j]
        j += b[j] <= a[i]
        i += step
    return common


@numba.njit(cache=True)
def _root(parents: np.ndarray, index: int) -> int:
    while parents[index] != index:
        index = parents[index]
    return index


def _buckets(band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tickets sorted by the hash of their signatures in a band, and those hashes, sorted."""
    mixed = np.zeros(len(band), np.uint64)
    for column in band.T:
        mixed = (mixed ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
    order = np.argsort(mixed, kind="stable")
    return order, mixed[order]


def _unfinished(roots: np.ndarray, buckets: np.ndarray, distance: int) -> np.ndarray:
    """Mask of the tickets whose bucket has pairs at this distance and is not one group yet."""
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
