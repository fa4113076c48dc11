"""Whether training can start in this container: what `nemo-run doctor` says of installation and device; 0 or 1."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    """Print a line for each part; 0 when training can start here."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from launch import doctor
    from modeling.attention import this_machine

    lines = [*doctor.installation(), *doctor.device(this_machine())]
    for line in lines:
        print(f"{line.about}: {line.text}")
    # fp32 is for the rehearsal, and packing can be turned off
    needed = [line for line in lines if line.about not in ("attention, fp32", "attention, bf16, packed")]
    return 0 if all(line.good for line in needed) else 1


if __name__ == "__main__":
    sys.exit(main())
