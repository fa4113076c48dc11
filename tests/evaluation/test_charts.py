"""Pictures keep their labels inside."""

from __future__ import annotations

import re

import pytest

from evaluation import charts
from evaluation.charts import Line

LETTER = 6.4  # units of a figure in DejaVu Sans at 11, the widest of the page's fonts but for wide letters


@pytest.mark.parametrize("most", [4e-3, 1.25e-4, 0.5, 12.0, 123_456.0])
def test_the_numbers_of_an_axis_stay_inside(most: float) -> None:
    picture = str(charts.lines("rate", [Line("rate", [1, 2, 3], [most / 7, most, most / 3])], x_axis="x", y_axis="y"))
    ends = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end">([^<]+)</text>', picture)
    assert len(ends) >= 2
    assert [text for x, text in ends if float(x) - LETTER * len(text) < 0] == []
