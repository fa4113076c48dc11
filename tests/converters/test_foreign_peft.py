"""Adapters between NeMo and every PEFT that reads them otherwise: the real programs, and the logits that they give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import CheckpointError
from converters.export_hf import export_checkpoint
from converters.import_hf import import_checkpoint
from converters.lora import LINEAR_IN, LINEAR_OUT, Adapter
from converters.mapping import Place
from converters.peft.expert_layouts import ExpertLayout
from converters.peft.export_peft import export_adapter
from converters.peft.import_peft import import_adapter
from converters.peft.module_names import ADAPTED
from modeling.hf_config import GptOssConfig
from tests.converters.adapters import RANK, write_adapter
from tests.converters.conftest import SIZES, write_model
from tests.converters.foreign_programs import OWN, PEFT017, TRANSFORMERS5, peft_jobs, vllm_factors

pytestmark = [pytest.mark.slow, pytest.mark.foreign]  # it starts other programs
READS = {
    OWN: ExpertLayout.transformers4,
    TRANSFORMERS5: ExpertLayout.transformers5,
    PEFT017: ExpertLayout.transformers5,
}
"""Which layout each program reads."""
PROGRAMS = pytest.mark.parametrize("program", READS)
KINDS: dict[str, dict[str, Any]] = {
    "everything": {},
    "attention": {"expert_layers": []},
    "experts_of_some_layers": {"attention": False, "expert_layers": [0, 2]},
    "with_the_router": {"router": True},
}
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
MADE: dict[str, dict[str, Any]] = {
    "experts": {"r": 6, "lora_alpha": 12, "target_modules": [], "target_parameters": PARAMETERS},
    "all_linear": {"r": 5, "lora_alpha": 8, "target_modules": "all-linear"},
    "q_and_v": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "some_layers": {"r": 4, "lora_alpha": 8, "target_modules": ["k_proj", "o_proj"], "layers_to_transform": [1]},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": True,
        # in this order, because PEFT takes the first that fits and saves them sorted
        "rank_pattern": {"layers.1.self_attn.o_proj": 7, "mlp.experts.down_proj": 3, "q_proj": 2},
        "alpha_pattern": {"experts.gate_up_proj": 3, "layers.2.self_attn.v_proj": 9, "v_proj": 5},
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "target_parameters": PARAMETERS,
    },
    "with_the_router": {"r": 4, "lora_alpha": 8, "target_modules": ["o_proj"], "modules_to_save": ["router"]},
}
SQUARE = {"r": 4, "lora_alpha": 8, "target_modules": [], "target_parameters": PARAMETERS[1:]}


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose down_proj is square, as in the published ones, and its import."""
    folder = tmp_path_factory.mktemp("square")
    import_checkpoint(write_model(folder / "hf", SIZES | {"intermediate_size": 64}, weights="bf16"), folder / "nemo")
    return folder


def logits_of(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from evaluation.transformers_model import load

    return load(folder)[0](tokens)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# ---- NeMo → PEFT ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(
    imported: Path, bf16_toy: Path, tokens: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """By program: the logits that it gives with each of our exports, and those of the merged model."""
    folder = tmp_path_factory.mktemp("exported")
    torch.save(tokens, folder / "tokens.pt")
    merged, adapters = {}, {kind: folder / "nemo" / kind for kind in KINDS}
    for kind, options in KINDS.items():
        write_adapter(adapters[kind], imported, **options)
        out = export_checkpoint(imported, folder / "merged" / kind, adapter=adapters[kind], weights="fp32")
        merged[kind] = logits_of(out, tokens)

    def of(program: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        places = {kind: folder / program / kind for kind in KINDS}
        jobs = []
        for kind, adapter in adapters.items():
            job = {"base": bf16_toy, "tokens": folder / "tokens.pt", "logits": places[kind].with_suffix(".pt")}
            jobs.append(job | {"adapter": export_adapter(adapter, places[kind], layout=READS[program])})
        peft_jobs(program, jobs, folder)
        return {kind: (torch.load(place.with_suffix(".pt")), merged[kind]) for kind, place in places.items()}

    return of


@PROGRAMS
def test_a_program_computes_what_the_merged_export_computes(
    program: str, exported: Callable[..., Any], bf16_toy: Path, tokens: torch.Tensor
) -> None:
    untouched = logits_of(bf16_toy, tokens)
    for found, merged in exported(program).values():
        assert (merged - untouched).abs().max() > 0.1, "an adapter without effect would prove nothing"
        assert_close(found, merged)


def test_vllm_reads_the_factors_of_every_expert(imported: Path, bf16_toy: Path, tmp_path: Path) -> None:
    """By its own reader and its own split among the experts, up to the buffers of its kernels."""
    adapter = write_adapter(tmp_path / "adapter", imported)
    read = vllm_factors(export_adapter(adapter, tmp_path / "peft"), bf16_toy / "config.json", tmp_path)
    config = GptOssConfig.from_file(bf16_toy)
    opened = Adapter.open(adapter, config)
    experts = [entry for entry in ADAPTED if entry.per_expert]
    assert sorted(read) == [f"model.layers.{layer}.mlp.experts" for layer in range(config.num_layers)]
    for layer in range(config.num_layers):
        lora_a, lora_b, scale = read[f"model.layers.{layer}.mlp.experts"]
        assert scale == opened.alpha / RANK
        for entry, found_a, found_b in zip(experts, lora_a, lora_b, strict=True):
            for expert in range(config.num_experts):
                place = Place((layer, expert))
                assert torch.equal(found_a[expert], opened.factor(entry, place, LINEAR_IN))
                (rows,) = entry.to_hf(opened.factor(entry, place, LINEAR_OUT), config)
                assert torch.equal(found_b[expert], rows)


# ---- PEFT → NeMo ---------------------------------------------------------------------------------------------------


@PROGRAMS
def test_what_a_program_made_is_the_same_change_in_nemo(
    program: str, imported: Path, bf16_toy: Path, square: Path, tokens: torch.Tensor, tmp_path: Path
) -> None:
    torch.save(tokens, tmp_path / "tokens.pt")
    made = {kind: (bf16_toy, imported, settings) for kind, settings in MADE.items()}
    made["square"] = (square / "hf", square / "nemo", SQUARE)
    made["square_but_gate_and_up"] = (square / "hf", square / "nemo", MADE["experts"])
    jobs = [
        {
            "base": base,
            "adapter": tmp_path / kind,
            "tokens": tmp_path / "tokens.pt",
            "logits": tmp_path / f"{kind}.pt",
            "settings": settings,
        }
        for kind, (base, _, settings) in made.items()
    ]
    peft_jobs(program, jobs, tmp_path)
    for kind, (_, base, _) in made.items():
        said = None
        if kind == "square" and program != PEFT017:
            with pytest.raises(CheckpointError, match=r"are square, and nothing says .* add --layout transformers5 or"):
                import_adapter(tmp_path / kind, tmp_path / "refused", base=base)
            said = READS[program]
        adapter = import_adapter(tmp_path / kind, tmp_path / "nemo" / kind, base=base, layout=said)
        out = export_checkpoint(base, tmp_path / "merged" / kind, adapter=adapter, weights="fp32")
        assert_close(logits_of(out, tokens), torch.load(tmp_path / f"{kind}.pt"))
    config = GptOssConfig.from_file(imported / "context" / "hf_config.json")
    fused = Adapter.open(tmp_path / "nemo" / "all_linear", config)
    assert fused.alpha == 24, "the scale of 8/5 at a rank of 15"
    assert fused.reader.shape("decoder.layers.self_attention.linear_qkv" + LINEAR_IN) == (3, 15, 64)
    assert fused.reader.shape("decoder.layers.self_attention.linear_proj" + LINEAR_IN) == (3, 15, 160)
