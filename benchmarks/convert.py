"""Conversions of a gpt-oss of real size, against the plain write of the same bytes, and against NeMo's own importer.

    python benchmarks/convert.py --model gpt-oss-20b                 # all layers: 100 GB of disk, 14 + 42 + 42
    python benchmarks/convert.py --model gpt-oss-20b --layers 4      # a small disk
    python benchmarks/convert.py --model gpt-oss-120b --layers 2     # memory does not grow with experts
    python benchmarks/convert.py --to bridge --layers 4              # Megatron-Bridge's checkpoint instead of NeMo's
    python benchmarks/convert.py --stock                             # one layer of the 20b, NeMo's importer beside ours

Every line is a command of its own process, started as a user would; memory is what it allocated (see measure.Cost).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)

from benchmarks.measure import GIB, Cost, plain_read, plain_write, run  # noqa: E402
from benchmarks.random_checkpoint import write_random_checkpoint  # noqa: E402

CONVERT = [sys.executable, "-m", "launch.cli", "convert"]


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def line(step: str, size: int, cost: Cost, plain: tuple[float, float] | None = None) -> None:
    speed = size / 1e9 / cost.seconds
    memory = f"{cost.anonymous / GIB:8.2f} {cost.resident / GIB:8.2f}"
    ratios = ""
    if plain:
        read, write = plain
        ratios = f"{cost.seconds / write:8.2f} {cost.seconds / (read + write):10.2f}   {write:.1f}, {read:.1f}"
    print(f"{step:16} {size / 1e9:7.2f} {cost.seconds:8.1f} {cost.cpu:7.1f} {speed:6.2f} {memory} {ratios}", flush=True)


def convert_all(model: str, layers: int | None, folder: Path, to: str = "nemo") -> int:
    """Import, export as MXFP4 and as bf16, verify each; what is verified goes, to make room.

    Returns:
        the highest memory in bytes that one of the commands allocated.
    """
    memory = []

    def measured(*arguments: str | Path) -> Cost:
        cost = run([*CONVERT, *arguments])
        memory.append(cost.anonymous)
        return cost

    hf, megatron, mxfp4, bf16 = (folder / name for name in ("hf", to, "mxfp4", "bf16"))
    name = {"nemo": "NeMo", "bridge": "Bridge"}[to]
    config = write_random_checkpoint(hf, model, layers)
    stored = size_of(hf)
    plainly = _bf16_bytes(config)
    print(f"{'':58} {'× plain':>17} {'× plain':>10}   plain write with")
    head = f"{'step':16} {'GB':>7} {'s':>8} {'CPU s':>7} {'GB/s':>6} {'RSS GiB':>8} {'w/ files':>8}"
    print(f"{head} {'write':>8} {'read+write':>10}   fsync, plain read: s")

    plain = plain_read(hf), plain_write(folder, plainly)
    cost = measured("import", hf, megatron, "--to", to)
    line("import", size_of(megatron), cost, plain)
    line(f"verify HF {name}", stored + size_of(megatron), measured("verify", hf, megatron))

    read = plain_read(megatron)
    plain = read, plain_write(folder, stored)
    line("export mxfp4", stored, measured("export", megatron, mxfp4, "--weights", "mxfp4"), plain)
    line("verify HF export", 2 * stored, measured("verify", hf, mxfp4))
    shutil.rmtree(mxfp4)
    shutil.rmtree(hf)

    free = shutil.disk_usage(folder).free
    if free < plainly + 2 * 10**9:
        print(f"export bf16: left out, it needs {plainly / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: use --layers.")
        return max(memory)
    plain = read, plain_write(folder, plainly)
    line("export bf16", plainly, measured("export", megatron, bf16, "--weights", "bf16"), plain)
    line(f"verify {name} bf16", 2 * plainly, measured("verify", megatron, bf16))
    if to == "bridge":
        # megatron-bridge 0.6.2, AutoBridge.import_ckpt: to_megatron_model(use_cpu_initialization=True), then save
        whole = f"{plainly / GIB:.1f} GiB in bf16, by count, not run"
        print(f"Megatron-Bridge's own import builds the whole model first: {whole}.")
    return max(memory)


def _bf16_bytes(config: object) -> int:
    from converters.mapping import TABLE
    from modeling.hf_config import GptOssConfig

    assert isinstance(config, GptOssConfig)
    numbers = 0
    for entry in TABLE:
        count = 1
        for length in (*entry.leading(config), *entry.shape(config)):
            count *= length
        numbers += count
    return 2 * numbers


def against_stock(layers: int, folder: Path) -> None:
    """NeMo's importer and ours on the same checkpoint: loading with dequantization, and all of it.

    NeMo's loading maps what needs no dequantization and does not read it yet: ours is timed without that, and with it.
    """
    hf = folder / "hf"
    write_random_checkpoint(hf, "gpt-oss-20b", layers)

    def timed(*command: str | Path) -> Cost:
        plain_read(hf, cached=True)  # so that the files are in the page cache for every measurement
        return run([str(part) for part in command])

    stock = timed(sys.executable, ROOT / "benchmarks" / "stock_import.py", hf, folder / "stock")
    seconds = json.loads(stock.output.splitlines()[-1])
    shutil.rmtree(folder / "stock")
    ours = timed(*CONVERT, "import", hf, folder / "ours")
    shutil.rmtree(folder / "ours")
    parts = ("experts", "load", "import")
    experts, load, imports = (timed(sys.executable, __file__, "--time", part, hf, folder / "ours") for part in parts)
    decoded, loaded, imported = (float(cost.output.splitlines()[-1]) for cost in (experts, load, imports))
    print(f"whole process, CPU seconds: NeMo {stock.cpu:.1f}, ours {ours.cpu:.1f}")
    print(f"{'':24} {'NeMo s':>8} {'ours s':>8} {'ratio':>6}   {'NeMo GiB':>8} {'ours GiB':>8}")
    for name, theirs, mine, cost in (
        ("load and dequantize", seconds["load"], decoded, experts),
        ("the same, all read", seconds["load"], loaded, load),
        ("import", seconds["all"], imported, imports),
        ("import, whole process", stock.seconds, ours.seconds, ours),
    ):
        memory = f"{stock.anonymous / GIB:8.2f} {cost.anonymous / GIB:8.2f}"
        print(f"{name:24} {theirs:8.1f} {mine:8.2f} {theirs / mine:6.1f}   {memory}", flush=True)


def time_part(part: str, hf: Path, nemo: Path) -> None:
    """Print the seconds of an import, or of loading all tensors or the experts alone: without Python's start."""
    import numpy as np

    from converters.hf_reader import HfReader
    from converters.import_hf import import_checkpoint
    from converters.mapping import layers_of, places
    from converters.storage.pool import run_all
    from modeling.mxfp4 import dequantize

    dequantize(np.zeros((1, 1, 16), np.uint8), np.zeros((1, 1), np.uint8))  # the kernel comes from numba's cache
    started = time.perf_counter()
    if part == "import":
        import_checkpoint(hf, nemo)
    else:
        reader = HfReader(hf, cached=True)
        run_all(
            lambda entry=entry, place=place: [reader.read(entry, place), None][1]  # read, and let go
            for entry, layer in layers_of(reader.config)
            if part == "load" or entry.is_expert_matrix
            for place in places(entry, reader.config, layer)
        )
    print(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt-oss-20b", choices=["gpt-oss-20b", "gpt-oss-120b"])
    parser.add_argument("--layers", type=int, help="take only the first layers")
    parser.add_argument("--to", default="nemo", choices=["nemo", "bridge"], help="whose checkpoint is between")
    parser.add_argument("--stock", action="store_true", help="compare with NeMo's importer, on one layer of the 20b")
    parser.add_argument("--folder", type=Path, help="where to work; a new folder in it is removed afterwards")
    parser.add_argument("--time", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.time:
        part, hf, nemo = options.time
        time_part(part, Path(hf), Path(nemo))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the folder goes then, too
    folder = Path(tempfile.mkdtemp(prefix="convert-", dir=options.folder))
    try:
        number = options.layers or (1 if options.stock else None)
        layers = "all layers" if number is None else f"{number} layer{'s' * (number > 1)}"
        print(f"{options.model}, {layers}, {os.cpu_count()} cores, Python {platform.python_version()}, {folder}")
        if options.stock:
            against_stock(number or 1, folder)
        else:
            convert_all(options.model, number, folder, options.to)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
