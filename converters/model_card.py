"""The model card of an exported model: its sources with hashes, the versions, the quantization error."""

from __future__ import annotations

import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common import artifacts

_PACKAGES = ("torch", "safetensors", "transformers", "nemo_toolkit", "megatron-core")


def card_text(nemo: Path, like: Path, storage: str, details: dict[str, Any], usage: str = "") -> str:
    """Markdown with the fields that the Hub reads.

    Args:
        nemo: checkpoint of the weights.
        like: our import of the base, whose manifest names the base's files.
        storage: how the weights are stored, such as "mxfp4".
        details: of the export's manifest.
        usage: Markdown on how to use the model, for the end of the card.
    """
    origin = artifacts.read_manifest(like)
    base = str(origin.details.get("source", "")) if origin else ""
    is_hub_id = base.count("/") == 1 and not Path(base).exists()
    lines = ["---", "license: apache-2.0", "library_name: transformers", "pipeline_tag: text-generation"]
    lines += [f"base_model: {base}"] if is_hub_id else []
    lines += ["tags: [gpt_oss]", "---", f"# {nemo.name}, exported", ""]
    lines += [
        "Full weights for any server that loads gpt-oss, written by `nemo-run convert export`.",
        "",
    ]
    lines += ["| provenance | |", "|---|---|"]
    rows = {"base": base or str(like), "weights": str(nemo), "adapter, merged in fp32": details.get("adapter")}
    rows |= {"stored as": storage, "made": time.strftime("%Y-%m-%d", time.gmtime()), "with": _versions()}
    lines += [f"| {name} | {value} |" for name, value in rows.items() if value]
    if origin:
        hashes = origin.details.get("sha256", {})
        lines += [f"| base {file} | sha256 {digest} |" for file, digest in hashes.items()]
    return "\n".join([*lines, *_quantization(details)]) + "\n" + usage


def _versions() -> str:
    versions = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(versions)


def _quantization(details: dict[str, Any]) -> list[str]:
    if "kept" not in details:
        return []
    errors: dict[str, float] = details["relative_errors"]
    lines = ["", f"{details['kept']} expert matrices carry the original MXFP4 blocks and scales, byte for byte."]
    if errors:
        lines += ["The others were quantized again (OCP MX v1.0, nearest, ties to even):", ""]
        lines += ["| tensor | error, relative to the values (RMS) |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in errors.items()]
    return lines
