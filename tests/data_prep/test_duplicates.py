"""Groups of near duplicates against all pairs of shingle sets, counted with Python's own sets."""

import random
from itertools import combinations

import numpy as np
import pytest

from data_prep.duplicates import near_duplicates
from data_prep.intake import hash64
from data_prep.normalizing import normalized
from data_prep.sample import sample_tickets
from tests.real_tickets import GERMAN, MAIN, real_tickets


def shingles(words: str) -> set[tuple[str, ...]]:
    found = words.split(" ")
    return {tuple(found)} if len(found) <= 3 else set(zip(found, found[1:], found[2:], strict=False))


def groups_by_all_pairs(texts: list[str], threshold: float) -> set[frozenset[str]]:
    group = {text: {text} for text in texts}
    sets = {text: shingles(text) for text in texts}
    for a, b in combinations(texts, 2):
        common = len(sets[a] & sets[b])
        if common / (len(sets[a]) + len(sets[b]) - common) >= threshold and group[a] is not group[b]:
            group[a] |= group[b]
            for member in group[b]:
                group[member] = group[a]
    return {frozenset(members) for members in group.values()}


def groups_found(texts: list[str], threshold: float) -> set[frozenset[str]]:
    keys = np.array([hash64(text.encode()) for text in texts], np.uint64)
    found = near_duplicates(keys, texts.__getitem__, threshold)
    assert all(keys[root] == min(keys[found == root]) for root in set(found.tolist()))
    return {frozenset(texts[i] for i in np.flatnonzero(found == root)) for root in set(found.tolist())}


def altered(text: str, draw: random.Random, changes: int) -> str:
    words = text.split(" ")
    for _ in range(changes):
        words[draw.randrange(len(words))] = f"w{draw.randrange(1000)}"
    return " ".join(words)


def mutated_tickets(count: int) -> list[str]:
    draw = random.Random(7)
    texts = [normalized(f"{row['subject']} {row['body']}") for row in sample_tickets(count, seed=3)]
    texts += [altered(draw.choice(texts), draw, draw.randrange(5)) for _ in range(count // 2)]
    return sorted({*texts, "a", "a b", "a b c", "a b c d", "b c d"})


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.95])
def test_groups_are_those_of_all_pairs(threshold):
    texts = mutated_tickets(400)
    expected = groups_by_all_pairs(texts, threshold)
    assert sum(len(group) > 1 for group in expected) > 5
    assert groups_found(texts, threshold) == expected


def test_a_threshold_of_one_joins_nothing():
    texts = mutated_tickets(100)
    assert groups_found(texts, 1.0) == {frozenset([text]) for text in texts}


def test_order_does_not_matter():
    texts = mutated_tickets(300)
    shuffled = random.Random(1).sample(texts, len(texts))
    assert groups_found(texts, 0.8) == groups_found(shuffled, 0.8)


def test_a_bucket_of_thousands_of_copies_is_quick():
    base = "we have had a problem with the printer on the third floor since monday and nobody comes to look at it"
    texts = [f"{base} room {number}" for number in range(3000)]
    assert groups_found(texts, 0.8) == {frozenset(texts)}


@pytest.mark.parametrize("file", [MAIN, GERMAN])
def test_real_tickets_against_all_pairs(file):
    import pandas as pd

    frame = pd.read_csv(real_tickets(file), dtype=str, keep_default_na=False)[:1000]
    draw = random.Random(5)
    texts = [normalized(f"{a} {b}".replace("\\n", " ")) for a, b in zip(frame["subject"], frame["body"], strict=True)]
    texts = sorted({*texts, *(altered(text, draw, 1 + draw.randrange(4)) for text in texts[:300])})
    assert groups_found(texts, 0.8) == groups_by_all_pairs(texts, 0.8)
