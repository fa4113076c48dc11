"""Model cards of an exported model and of an adapter: sources with hashes, versions, quantization error."""

from __future__ import annotations

import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common import artifacts

_PACKAGES = ("torch", "safetensors", "transformers", "nemo_toolkit", "megatron-core")


def card_text(title: str, nemo: Path, like: Path, storage: str, details: dict[str, Any], usage: str = "") -> str:
    """Markdown with the fields that the Hub reads; folders stand in it by their names, not by where they are.

    Args:
        nemo: checkpoint of the weights.
        like: our import of the base, whose manifest names the base's files.
        storage: how the weights are stored, such as "mxfp4".
        details: of the export's manifest.
        usage: Markdown on how to use the model, for the end of the card.
    """
    origin = artifacts.read_manifest(like)
    base = str(origin.details.get("source", "")) if origin else ""
    lines = ["---", "license: apache-2.0", "library_name: transformers", "pipeline_tag: text-generation"]
    lines += [*_hub_field(base), "tags: [gpt_oss]", "---", f"# {title}", ""]
    lines += [
        "Full weights for any server that loads gpt-oss, written by `nemo-run convert export`.",
        "",
    ]
    lines += ["| provenance | |", "|---|---|"]
    adapter = details.get("adapter")
    rows = {"base": hub_id(base) or Path(base or like).name, "weights": nemo.name}
    rows |= {"adapter, merged in fp32": Path(adapter).name if adapter else None}
    rows |= {"stored as": storage, "made": time.strftime("%Y-%m-%d", time.gmtime()), "with": _versions()}
    lines += [f"| {name} | {value} |" for name, value in rows.items() if value]
    if origin:
        hashes = origin.details.get("sha256", {})
        lines += [f"| base {file} | sha256 {digest} |" for file, digest in hashes.items()]
    return "\n".join([*lines, *_quantization(details)]) + "\n" + usage


def adapter_card_text(title: str, base: str | None, rank: int, experts: str | None) -> str:
    """Markdown of a PEFT folder.

    Args:
        base: Hub id or folder of the model that the adapter belongs to.
        experts: how the experts' factors are stored and who reads them; None where there are none.
    """
    lines = ["---", "license: apache-2.0", "library_name: peft", "pipeline_tag: text-generation"]
    lines += [*_hub_field(base or ""), "tags: [gpt_oss, lora]", "---", f"# {title}", ""]
    lines += [f"LoRA adapter of rank {rank}, written by `nemo-run convert adapter`.", ""]
    lines += ["| provenance | |", "|---|---|"]
    rows = {"base": (hub_id(base) or Path(base).name) if base else None, "experts": experts, "with": _versions()}
    lines += [f"| {name} | {value} |" for name, value in rows.items() if value]
    return "\n".join(lines) + "\n"


def hub_id(source: str) -> str | None:
    """The Hub's name of a model that was imported by that name, or from the Hub's cache; None for another folder."""
    if cached := re.search(r"models--([^/]+?)--([^/]+)/snapshots/", source):
        return f"{cached[1]}/{cached[2]}"
    return (
        source if source.count("/") == 1 and not source.startswith(("/", ".")) and not Path(source).exists() else None
    )


def _hub_field(base: str) -> list[str]:
    name = hub_id(base)
    return [f"base_model: {name}"] if name else []


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
