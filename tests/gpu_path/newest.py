"""A newer Transformer Engine's Python filters, asked as `checks.backends` asks: `newest.py FOLDER`, no Megatron.

From 2.20 on its library has cuDNN itself build a graph before it answers, which takes a GPU: that answer counts as
yes. So what we choose must be among what it takes; what it refuses says less.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    os.environ |= {"TRITON_INTERPRET": "1"}  # as in worker.py
    from tests.gpu_path import emulation, extension
    from tests.gpu_path.checks import backends

    emulation.load_engine()
    module: Any = sys.modules[extension.NAME]
    taken = module.NVTE_Fused_Attn_Backend.NVTE_F16_arbitrary_seqlen
    module.get_fused_attn_backend = lambda parameters: (taken, "")
    found = {"engine": str(emulation.machine().engine), **backends.run(Path())}
    Path(sys.argv[1], "newest.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
