"""What `doctor` says of machines that are described here, and what becomes of its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from evaluation.jobs import KernelReport
from launch import doctor
from launch.doctor import Line
from modeling.attention import Machine
from modeling.hf_config import published_config
from tests.conftest import nemo_run

H100 = Machine(Version("2.12.0"), Version("9.18.0"), (9, 0), 8, 80 * 10**9)
GOOD = KernelReport("fused", 0.01, 0.02, 0.01, 0.05, 40_960.0, 21.5, 0.4)


def said(machine: Machine) -> dict[str, Line]:
    return {line.about: line for line in doctor.recipes(machine)}


def test_eight_h100_train_all_but_what_needs_more_nodes() -> None:
    lines = said(H100)
    assert lines["gpt_oss_20b_lora"] == Line(
        "gpt_oss_20b_lora", "1 GPU, TP1 EP1 PP1 CP1, bf16, packed, Transformer Engine's fused attention, 37 GB a GPU"
    )
    assert {name for name, line in lines.items() if not line.good} == {"gpt_oss_120b_lora 2x8xh100", "gpt_oss_120b_sft"}
    assert "8 GPUs, TP1 EP8" in lines["gpt_oss_120b_lora"].text
    assert "1 GPU, TP1 EP1" in lines["gpt_oss_120b_lora 1xh100"].text
    assert "it trains on 2 nodes" in lines["gpt_oss_120b_lora 2x8xh100"].text


def test_one_card_of_24_gb_trains_the_20b_by_its_preset() -> None:
    lines = said(Machine(H100.engine, H100.cudnn, (8, 9), 1, 24 * 10**9))
    assert not lines["gpt_oss_20b_lora"].good
    assert "needs 34 GB of each GPU, which has 24 GB" in lines["gpt_oss_20b_lora"].text
    assert lines["gpt_oss_20b_lora 24gb"] == Line(
        "gpt_oss_20b_lora 24gb", "1 GPU, TP1 EP1 PP1 CP1, bf16, packed, attention by torch, 22 GB a GPU"
    )
    assert not lines["gpt_oss_120b_lora 1xh100"].good
    assert lines["gpt_oss_tiny_lora"] == Line("gpt_oss_tiny_lora", "2 processes, fp32")


def test_a_cpu_is_asked_for_no_memory_of_gpus() -> None:
    cpu = Machine(None, None, None, 0, 0)
    lines = said(cpu)
    assert not [line.text for line in lines.values() if "each GPU" in line.text]
    assert lines["gpt_oss_20b_lora cpu"] == Line("gpt_oss_20b_lora cpu", "1 process, bf16")
    assert "a CPU would train for 2 days" in lines["gpt_oss_20b_lora"].text


def test_a_missing_package_and_a_new_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "nemo_toolkit":
            raise doctor.PackageNotFoundError
        return "2.1.0" if name == "numpy" else "1.0"

    monkeypatch.setattr(doctor, "version", version)
    wrong = {line.about: line.text for line in doctor.installation() if not line.good}
    assert set(wrong) == {"nemo_toolkit", "numpy"}
    assert wrong["numpy"] == "2.1.0: NeMo needs one below 2"


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, set()),
        ({"logits": 0.2}, {"logits"}),
        ({"gradients": float("nan")}, {"gradients"}),
        ({"packed": 1.0}, {"packed and alone"}),
    ],
)
def test_wrong_kernels_are_seen(change: dict[str, float], wrong: set[str]) -> None:
    lines = list(doctor.kernels(KernelReport(**{**vars(GOOD), **change}), "bf16"))
    assert {line.about for line in lines if not line.good} == wrong
    assert lines[-1].text == "50.0 ms, 40,960 tokens/s through the timed layers, 21.5 GB, MFU 40%"


@pytest.mark.slow
def test_the_command_on_this_machine(tmp_path: Path) -> None:
    """A machine without a GPU: the rehearsal trains, the others say why not; the kernels are right in fp32."""
    sizes = {"hidden_size": 160, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 2}
    sizes |= {"head_dim": 32, "num_local_experts": 8, "vocab_size": 512}
    (tmp_path / "config.json").write_text(json.dumps(published_config() | sizes))
    model = tmp_path / "config.json"
    ran = nemo_run("doctor", "--kernels", "--model", model, "--card", tmp_path / "card.yaml", cwd=tmp_path)
    assert ran.status == 0, ran.out + ran.err
    assert "this machine has no GPU" in ran.out
    card = yaml.safe_load((tmp_path / "card.yaml").read_text())
    assert card["kernels"]["logits"] < 1e-4
    assert card["kernels"]["gradients"] < 1e-4
    assert card["kernels"]["attention"] == "local"
    assert {item["status"] for item in card["items"] if item["item"] in ("logits", "gradients")} == {"verified"}
