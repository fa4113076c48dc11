"""LoRA steps at the real width with experts that stay MXFP4, beside the same steps with bf16 experts.

    python benchmarks/packed_experts.py                           # 2 layers of the 20b: 13 GB of disk, 8 GiB of memory
    python benchmarks/packed_experts.py --layers 4 --tokens 1024

Both start from imports of one random checkpoint, each in a process of its own; losses and adapters must be the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)

from benchmarks.measure import GIB  # noqa: E402


def train(checkpoint: Path, tokens: int, steps: int) -> dict[str, Any]:
    """Take LoRA steps; bytes of the weights in memory, the highest memory of a step, seconds of each, losses, and the
    adapter's hash."""
    import torch

    from converters.nemo_reader import NemoReader
    from modeling import inference
    from modeling.hf_config import GptOssConfig

    inference.initialize()
    from nemo.collections.llm.fn.base import walk

    from modeling.expert_lora import GptOssLoRA

    config, packed = GptOssConfig.from_file(checkpoint / "context" / "hf_config.json"), NemoReader(checkpoint).packed
    model = inference.build_model(config, seq_length=tokens, dtype=torch.bfloat16, packed_experts=packed)
    inference.load_weights(model, checkpoint)
    experts = [module for name, module in model.named_modules() if name.endswith(("linear_fc1", "linear_fc2"))]
    weights = [t for m in experts for name, t in [*m.named_parameters(), *m.named_buffers()] if "weight" in name]
    held = sum(weight.nbytes for weight in weights)
    model.requires_grad_(False)
    walk(model, GptOssLoRA(dim=16, alpha=32).transform)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (1, tokens), generator=generator)
    positions = torch.arange(tokens)[None]
    model.train()
    found: dict[str, Any] = {"experts": held, "seconds": [], "losses": []}
    for step in range(steps + 1):
        if step == 1:
            Path("/proc/self/clear_refs").write_text("5")  # the highest memory from here on
        started = time.perf_counter()
        loss = model(ids, positions, None, labels=ids.roll(-1, 1)).float().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found["losses"].append(float(loss))
        if step:
            found["seconds"].append(time.perf_counter() - started)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    adapter = hashlib.sha256()
    for parameter in trained:
        adapter.update(parameter.detach().view(torch.uint8).numpy())
    return found | {
        "peak": int(status["VmHWM"].split()[0]) * 1024,
        "parameters": config.num_layers * _values(config),
        "adapter": adapter.hexdigest(),
    }


def _values(config: Any) -> int:
    return config.num_experts * 3 * config.hidden_size * config.ffn_size


def compare(model: str, layers: int, tokens: int, steps: int, folder: Path) -> bool:
    """Print both, and the ratios; whether losses and adapters are the same."""
    import subprocess

    from benchmarks.random_checkpoint import write_random_checkpoint
    from converters.import_hf import import_checkpoint

    write_random_checkpoint(folder / "hf", model, layers)
    rows: dict[str, dict[str, Any]] = {}
    print(f"{model}, {layers} layers, {tokens} tokens, {steps} steps, {os.cpu_count()} cores")
    print(f"{'experts':8} {'bytes a value':>13} {'peak GiB':>9} {'s a step':>9}   last loss")
    for experts in ("bf16", "mxfp4"):
        nemo = import_checkpoint(folder / "hf", folder / experts, experts=experts)
        out = folder / f"{experts}.json"
        arguments = [str(nemo), "--worker", str(out), "--tokens", str(tokens), "--steps", str(steps)]
        subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=3000)
        row = rows[experts] = json.loads(out.read_text())
        seconds = statistics.median(row["seconds"])
        each = row["experts"] / row["parameters"]
        print(f"{experts:8} {each:13.3f} {row['peak'] / GIB:9.2f} {seconds:9.2f}   {row['losses'][-1]:.6f}", flush=True)
    bf16, packed = rows["bf16"], rows["mxfp4"]
    seconds = [statistics.median(row["seconds"]) for row in (packed, bf16)]
    print(f"ratio: memory {packed['peak'] / bf16['peak']:.2f}, step {seconds[0] / seconds[1]:.2f}")
    same = all(packed[of] == bf16[of] for of in ("losses", "adapter"))
    print("losses and adapters: " + ("the same bits" if same else "DIFFERENT"))
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", default="gpt-oss-20b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    if given.worker:
        given.worker.write_text(json.dumps(train(given.checkpoint, given.tokens, given.steps)))
        return
    with tempfile.TemporaryDirectory(dir=".") as folder:
        compare(given.model, given.layers, given.tokens, given.steps, Path(folder))


if __name__ == "__main__":
    main()
