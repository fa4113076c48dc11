"""The requirements around an installed torch: `python containers/requirements.py needed|constraints`.

`needed` prints what pyproject.toml asks for with [nemo]; `constraints` prints constraints.txt with the torch that is
installed in place of its own, so that pip does not touch the image's.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ("torch", "torchvision", "triton", "pytorch-triton", "transformer-engine", "flash-attn", "apex")


def needed(pyproject: str) -> list[str]:
    """The requirements of training, from the text of pyproject.toml."""
    project = tomllib.loads(pyproject)["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["nemo"]]


def constraints(text: str) -> list[str]:
    """The lines of a constraints file for this environment."""
    lines = [line for line in text.splitlines() if not re.match(rf"({'|'.join(KEPT)})==", line)]
    for name in KEPT:
        try:
            lines.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            continue
    return lines


if __name__ == "__main__":
    if sys.argv[1:] == ["needed"]:
        print("\n".join(needed((ROOT / "pyproject.toml").read_text())))
    elif sys.argv[1:] == ["constraints"]:
        print("\n".join(constraints((ROOT / "constraints.txt").read_text())))
    else:
        sys.exit(__doc__)
