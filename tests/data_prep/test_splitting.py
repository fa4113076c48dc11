import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import DataError
from data_prep.intake import hash64
from data_prep.splitting import (
    NOWHERE,
    TEST,
    TRAINING,
    VALIDATION,
    Grouped,
    groups_apart,
    read_splits,
    resolve,
    split,
    write_splits,
)

SHARES = (0.8, 0.1, 0.1)
LANGUAGES = ["de", "en", "es", "fr", "pt"]


def tickets(rows: Sequence[tuple[str, int, int, str | None]]) -> Grouped:
    """(text, label, language, text of the group's leader) of each row."""
    keys = np.array([hash64(text.encode()) for text, *_ in rows], np.uint64)
    leaders = {hash64(text.encode()): hash64((leader or text).encode()) for text, _, _, leader in rows}
    different = np.unique(keys)
    smallest: dict[int, int] = {}
    for key in different.tolist():
        smallest.setdefault(leaders[key], key)
    group_of_key = np.searchsorted(
        different, np.array([smallest[leaders[key]] for key in different.tolist()], np.uint64)
    )
    labels = np.array([label for _, label, _, _ in rows], np.int32)
    languages = np.array([language for _, _, language, _ in rows], np.int32)
    return resolve(keys, np.arange(len(rows)).astype(np.uint64), labels, languages, group_of_key)


def places(grouped: Grouped, **options) -> dict[int, int]:
    found = split(grouped, grouped.labels, LANGUAGES, options.pop("shares", SHARES), 1, **options)
    return dict(zip(grouped.keys.tolist(), found.tolist(), strict=True))


row = st.tuples(st.integers(0, 10_000).map(str), st.integers(0, 3), st.integers(0, 2), st.none())


def test_majority_decides_and_the_smallest_of_a_tie():
    grouped = tickets([("a", 2, 0, "a"), ("b", 1, 0, "a"), ("c", 1, 0, "a"), ("d", 3, 0, None), ("d", 0, 1, None)])
    by_key = dict(zip(grouped.keys.tolist(), grouped.labels.tolist(), strict=True))
    assert [by_key[hash64(text)] for text in (b"a", b"b", b"c", b"d")] == [1, 1, 1, 0]
    assert sorted(map(dict, grouped.conflicts.values()), key=len) == [{1: 2, 2: 1}, {0: 1, 3: 1}]
    assert grouped.relabelled == 1  # a; of the two rows of d, one with the settled label stands for both
    assert grouped.rows[grouped.keys.tolist().index(hash64(b"d"))] == 4


@given(st.lists(st.integers(0, 60), min_size=1, max_size=2))
@example([24, 24])
@example([25, 25])
def test_a_label_in_two_languages_keeps_its_shares_within_one_group(languages):
    rows = [(f"{code} {i}", 0, code, None) for code, count in enumerate(languages) for i in range(count)]
    counts = Counter(places(tickets(rows)).values()) if rows else Counter()
    for where, share in enumerate(SHARES):
        assert abs(counts[where] - share * sum(languages)) <= 1 + 1e-9


@pytest.mark.parametrize("count", range(5, 40))
def test_a_label_in_five_languages_of_one_size_keeps_its_shares_within_two_groups(count):
    rows = [(f"{code} {i}", 0, code, None) for code in range(5) for i in range(count)]
    counts = Counter(places(tickets(rows)).values())
    for where, share in enumerate(SHARES):
        assert abs(counts[where] - share * len(rows)) <= 2 + 1e-9


def test_large_groups_do_not_shift_the_shares():
    sizes = [random.Random(5).choice((1, 1, 1, 2, 9)) for _ in range(300)]
    rows = [(f"{group} {i}", 0, 1, str(group)) for group, size in enumerate(sizes) for i in range(size)]
    counts = Counter(places(tickets(rows)).values())
    for where, share in ((TEST, 0.1), (VALIDATION, 0.1)):
        assert abs(counts[where] - share * len(rows)) <= 9 / 2 + 1


def test_few_groups_go_to_training_first():
    counts = [Counter(places(tickets([(str(i), 0, 1, None) for i in range(n)])).values()) for n in (1, 2, 3, 8, 10)]
    assert counts == [
        {TRAINING: 1},
        {TRAINING: 2},
        {TRAINING: 2, VALIDATION: 1},
        {TRAINING: 6, VALIDATION: 1, TEST: 1},
        {TRAINING: 8, VALIDATION: 1, TEST: 1},
    ]


@given(st.lists(row, min_size=1, max_size=80), row, st.sampled_from([SHARES, (0.5, 0.3, 0.2), (0.34, 0.33, 0.33)]))
@settings(max_examples=500, deadline=None)
def test_a_new_row_moves_at_most_one_group_over_each_border_of_its_stratum(rows, new, shares):
    rows = list({text: (text, label, language, leader) for text, label, language, leader in rows}.values())
    if new[0] in {text for text, *_ in rows}:
        return
    before, after = (places(tickets(found), shares=shares) for found in (rows, [*rows, new]))
    stratum = {hash64(text.encode()): (label, language) for text, label, language, _ in rows}
    moves: dict[tuple[int, int], Counter[tuple[int, int]]] = defaultdict(Counter)
    for key, where in before.items():
        if after[key] != where:
            moves[stratum[key]][where, after[key]] += 1
    assert set(moves) <= {(new[1], new[2])}
    for crossed in moves.values():
        assert set(crossed) <= {(TEST, TRAINING), (TRAINING, TEST), (VALIDATION, TRAINING), (TRAINING, VALIDATION)}
        assert sum(count for (a, b), count in crossed.items() if TEST in (a, b)) <= 1
        assert sum(count for (a, b), count in crossed.items() if VALIDATION in (a, b)) <= 1


@given(st.lists(st.integers(1, 9), min_size=2, max_size=40), st.data())
@settings(max_examples=300, deadline=None)
def test_a_row_that_joins_a_group_moves_at_most_one_other_over_each_border(sizes, data):
    rows = [(f"{group} {i}", 0, 1, str(group)) for group, size in enumerate(sizes) for i in range(size)]
    joined = data.draw(st.integers(0, len(sizes) - 1))
    if hash64(b"new") < min(hash64(text.encode()) for text, _, _, leader in rows if leader == str(joined)):
        return  # the smallest key orders a group: this one changes its place
    before, after = (places(tickets(found)) for found in (rows, [*rows, ("new", 0, 1, str(joined))]))
    moved = {
        (leader, before[key], after[key])
        for text, _, _, leader in rows
        if before[key := hash64(text.encode())] != after[key] and leader != str(joined)
    }
    assert sum(TEST in (a, b) for _, a, b in moved) <= 1
    assert sum(VALIDATION in (a, b) for _, a, b in moved) <= 1


@given(st.lists(row, min_size=1, max_size=60), st.randoms())
@settings(max_examples=50, deadline=None)
def test_order_of_rows_does_not_matter(rows, draw):
    rows = list({text: (text, label, language, leader) for text, label, language, leader in rows}.values())
    shuffled = draw.sample(rows, len(rows))
    assert places(tickets(rows)) == places(tickets(shuffled))


def test_a_group_stands_in_one_split():
    rows = [(f"{leader} {i}", leader % 3, i % 2, str(leader)) for leader in range(60) for i in range(3)]
    grouped = tickets(rows)
    found = places(grouped)
    for group in set(grouped.groups.tolist()):
        assert len({found[int(key)] for key in grouped.keys[grouped.groups == group]}) == 1
    assert set(found.values()) == {TRAINING, VALIDATION, TEST}


def test_frozen_tickets_stay_and_a_new_one_between_two_splits_is_left_out():
    old = [(str(i), i % 3, 0, None) for i in range(100)]
    held = places(tickets(old))
    in_test = next(text for text, *_ in old if held[hash64(text.encode())] == TEST)
    in_training = next(text for text, *_ in old if held[hash64(text.encode())] == TRAINING)
    new = [(f"n{i}", i % 3, 0, None) for i in range(37)] + [("like test", 0, 0, in_test), ("bridge", 0, 0, "g")]
    joined = [
        (text, label, language, "g" if text in (in_training, "40") else leader) for text, label, language, leader in old
    ]
    held[hash64(b"40")] = VALIDATION
    grouped = tickets([*joined, *new])
    after = places(grouped, frozen=held)
    found = np.array([after[key] for key in grouped.keys.tolist()], np.int8)
    assert groups_apart(grouped, found) == 1
    assert {key: after[key] for key in held} == held
    assert after[hash64(b"like test")] == TEST
    assert after[hash64(b"bridge")] == NOWHERE


def test_splits_file_round_trip(tmp_path):
    grouped = tickets([(str(i), 0, 0, None) for i in range(30)])
    found = split(grouped, grouped.labels, LANGUAGES, SHARES, 1)
    write_splits(tmp_path / "splits.csv", grouped, found)
    assert read_splits(tmp_path) == dict(zip(grouped.keys.tolist(), found.tolist(), strict=True))
    (tmp_path / "splits.csv").write_text("key,group,split\nxyz,0,training\n")
    with pytest.raises(DataError, match="damaged"):
        read_splits(tmp_path)
    with pytest.raises(DataError, match=r"holds no splits\.csv"):
        read_splits(tmp_path / "nowhere")
