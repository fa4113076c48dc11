"""A function of this package in the processes of one torchrun: `python -m recipes.job MODULE.FUNCTION JOB.json`.

What libraries print goes to `JOB.rankN.log` beside the file.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from errors import NemoRunError
from recipes.config import resolve
from recipes.console import rank, say, send_libraries_to


def main() -> int:
    """Call the function with the job's fields; 0 when it is done."""
    target, file = sys.argv[1], Path(sys.argv[2])
    send_libraries_to(file.with_suffix(f".rank{rank()}.log"))
    try:
        resolve(target)(**json.loads(file.read_text()))
    except NemoRunError as error:
        if rank() == 0:
            say(f"error: {error}")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Peers may wait in a collective, and interpreter shutdown would wait for them.
    os._exit(status)
