"""Singular values and norms against the whole matrices that the package never builds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluation.weight_changes import Change, low_rank_singular_values


@pytest.mark.parametrize(("out", "rank", "width"), [(40, 4, 24), (6, 6, 90), (5, 8, 7)])
def test_singular_values_equal_those_of_the_whole_matrix(out: int, rank: int, width: int) -> None:
    torch.manual_seed(0)
    linear_out, linear_in = torch.randn(out, rank), torch.randn(rank, width)
    whole = torch.linalg.svdvals(0.5 * linear_out.double() @ linear_in.double())
    found = low_rank_singular_values(linear_out, linear_in, 0.5)
    count = min(out, rank, width)
    torch.testing.assert_close(found[:count], whole[:count])
    assert float(found[count:].abs().sum()) < 1e-9
    assert float(found.norm()) == pytest.approx(float((0.5 * linear_out @ linear_in).norm()), rel=1e-5)


def test_effective_rank_counts_directions() -> None:
    def change(values: list[float] | None) -> Change:
        return Change("m", 0, None, 2.0, 1.0, values)

    assert change([3.0, 3.0, 3.0, 0.0]).effective_rank == pytest.approx(3)
    assert change([5.0, 0.0]).effective_rank == pytest.approx(1)
    shares = np.array([0.5, 0.25, 0.25])
    assert change([2.0, 1.0, 1.0]).effective_rank == pytest.approx(float(np.exp(-(shares * np.log(shares)).sum())))
    assert change(None).effective_rank is None
    assert change([0.0, 0.0]).effective_rank is None
    assert change([1.0]).relative == 0.5
