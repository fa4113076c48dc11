"""The tree of answers, and what it says of a model that goes one way or another."""

import numpy as np

from serving.label_tree import LabelTree, Step

END = 9
TREE = LabelTree([[1, 2, END], [1, 3, 4, 5, END], [6, END], [7, 8, END], [1, END]])


def test_stems_and_heads() -> None:
    assert TREE.stems == [(), (1,), (6,), (7,), (1, 2), (1, 3), (7, 8), (1, 3, 4), (1, 3, 4, 5)]
    assert TREE.heads == [(), (1,), (6,), (7,), (1, 2), (1, 3)]
    assert TREE.longest == 3  # 4, 5 and the end after 1, 3
    assert TREE.tokens == [1, 2, 3, 4, 5, 6, 7, 8, END]


def test_scores_are_sums_along_the_answers() -> None:
    goes = {(): 7, (7,): 8}
    said = {stem: {token: -0.1 * token - len(stem) for token in TREE.tokens} for stem in TREE.stems}
    steps = {stem: Step(goes.get(stem, END), said[stem]) for stem in TREE.stems}
    scores, greedy = TREE.scores(steps)
    expected = [sum(-0.1 * token - size for size, token in enumerate(answer)) for answer in TREE.answers]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    assert greedy == 3
    steps[(7, 8)] = Step(0, steps[(7, 8)].log_probabilities)
    assert TREE.scores(steps)[1] == -1
