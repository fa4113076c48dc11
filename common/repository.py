"""Where this package's code lies, and which folders of it a stage's process may need."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PACKAGES = (
    "common",
    "modeling",
    "planning",
    "converters",
    "data_prep",
    "recipes",
    "pipeline",
    "serving",
    "training",
    "evaluation",
    "stages",
    "launch",
)
"""The rooms, from the ground up: a room imports those before it, never one after it."""
