"""The precisions that parameters are trained in; all dtypes and byte counts are derived from these names."""

from __future__ import annotations

from typing import Literal, get_args

Precision = Literal["bf16", "fp32"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
BYTES: dict[Precision, int] = {"bf16": 2, "fp32": 4}
"""Bytes of one parameter."""
