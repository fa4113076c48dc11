"""Folders that transformers 5 wrote, made here by transformers 5 itself, and our exports loaded in it."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.hf_tokenizer import old_settings, open_tokenizer, special_tokens
from converters.export_hf import export_checkpoint
from converters.import_hf import import_checkpoint
from converters.verify import compare_checkpoints
from data_prep.harmony import load_tokenizer
from modeling.hf_config import GptOssConfig
from tests.conftest import run_to_its_end
from tests.converters.conftest import SIZES, write_model
from tests.converters.foreign_programs import OWN, TRANSFORMERS5, environment

pytestmark = [pytest.mark.slow, pytest.mark.foreign]  # it starts transformers 5
# none of them the default, by which a reader that does not see them would take the published ones
ROPE = {"factor": 16.0, "original_max_position_embeddings": 2048, "beta_fast": 24.0, "beta_slow": 2.0, "truncate": True}


def saved_again(base: Path, tokens: Path, out: Path) -> torch.Tensor:
    """Logits of a model in transformers 5, which saves it as it would."""
    script = Path(__file__).parent / "foreign" / "saved_again.py"
    command = [sys.executable, str(script), str(base), str(tokens), str(out)]
    done = run_to_its_end(command, env=environment(TRANSFORMERS5), timeout=300, cwd=out.parent)
    assert done.status == 0, done.err[-4000:]
    return torch.load(out / "logits.pt")


def logits_of(folder: Path, tokens: Path) -> torch.Tensor:
    from evaluation.transformers_model import load

    return load(folder)[0](torch.load(tokens))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`before`, with RoPE of its own and more special tokens; `hf`, the same loaded and saved by transformers 5."""
    folder = tmp_path_factory.mktemp("transformers5")
    before = write_model(folder / "before", SIZES, weights="bf16")
    config = json.loads((before / "config.json").read_text())
    config |= {"rope_theta": 5000, "rope_scaling": config["rope_scaling"] | ROPE}
    (before / "config.json").write_text(json.dumps(config))
    tokenizer = open_tokenizer(str(before))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    tokenizer.save_pretrained(before)
    torch.save(torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(0)), folder / "tokens.pt")
    saved_again(before, folder / "tokens.pt", folder / "hf")
    return folder


def test_it_is_what_transformers_5_writes(folders: Path) -> None:
    config = json.loads((folders / "hf" / "config.json").read_text())
    assert config["rope_parameters"]["factor"] == 16
    assert {"rope_scaling", "torch_dtype"} & set(config) == set()
    settings = json.loads((folders / "hf" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "TokenizersBackend"
    assert settings["extra_special_tokens"] == ["<|start|>", "<|end|>"]
    assert not (folders / "hf" / "special_tokens_map.json").exists()


def test_import_and_export_lead_back_to_the_old_fields(folders: Path, tmp_path: Path) -> None:
    nemo = import_checkpoint(folders / "hf", tmp_path / "nemo")
    assert compare_checkpoints(folders / "before", nemo).same
    configs = [
        replace(GptOssConfig.from_file(file), raw={})
        for file in (folders / "before" / "config.json", folders / "hf", nemo / "context" / "hf_config.json")
    ]
    assert configs[0] == configs[1] == configs[2]
    out = export_checkpoint(nemo, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert "rope_parameters" not in config
    assert (config["rope_theta"], config["rope_scaling"]["factor"]) == (5000, 16)
    assert json.loads((out / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    expected = logits_of(folders / "before", folders / "tokens.pt")
    assert torch.equal(logits_of(out, folders / "tokens.pt"), expected)
    in_newer = saved_again(out, folders / "tokens.pt", tmp_path / "again")
    assert (in_newer - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_an_export_like_it_is_in_the_old_fields(folders: Path, tmp_path: Path) -> None:
    nemo = import_checkpoint(folders / "before", tmp_path / "nemo")
    out = export_checkpoint(nemo, tmp_path / "out", like=folders / "hf")
    assert json.loads((out / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert json.loads((out / "special_tokens_map.json").read_text())["eos_token"] == "t2"
    assert "rope_parameters" not in json.loads((out / "config.json").read_text())
    before = open_tokenizer(str(folders / "before"))
    assert open_tokenizer(str(out)).encode("t3 <|start|> t4") == before.encode("t3 <|start|> t4")


def test_the_folder_itself_is_evaluated_as_it_is(folders: Path) -> None:
    """transformers 4.57 would take the published RoPE for one that it does not see."""
    expected = logits_of(folders / "before", folders / "tokens.pt")
    assert torch.equal(logits_of(folders / "hf", folders / "tokens.pt"), expected)


def test_its_tokenizer_opens_here_and_in_the_import(folders: Path, tmp_path: Path) -> None:
    nemo = import_checkpoint(folders / "hf", tmp_path / "nemo")
    before = open_tokenizer(str(folders / "before"))
    for folder in (folders / "hf", nemo / "context" / "nemo_tokenizer"):
        tokenizer = load_tokenizer(str(folder))
        assert tokenizer.special_tokens_map == before.special_tokens_map
        assert tokenizer.encode("t3 <|start|> t4") == before.encode("t3 <|start|> t4")
        assert tokenizer.decode(tokenizer.encode("t3<|end|>"), skip_special_tokens=True) == "t3"
    written = json.loads((nemo / "context" / "nemo_tokenizer" / "special_tokens_map.json").read_text())
    assert written["additional_special_tokens"] == ["<|start|>", "<|end|>"]
    assert written["eos_token"] == "t2"


def test_old_settings_stay_as_they_are() -> None:
    old = {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": {"image": "<i>"}, "backend": "x"}
    assert old_settings(old) == old
    assert special_tokens(old | {"pad_token": "<p>", "mask_token": None}) == {"pad_token": "<p>"}


def test_prepare_under_transformers_5_writes_what_it_writes_here(folders: Path, tmp_path: Path) -> None:
    """With a template that asks for the date and other of the environment's functions."""
    template = (
        "{{ strftime_now('%Y') }}{{ tools | tojson }}{{ eos_token }}"
        "{%- for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}"
        "{% generation %}{{ m.role }}: {{ m.content }}{% endgeneration %}{% endfor %}"
    )
    made = {}
    for program, name in ((OWN, "before"), (TRANSFORMERS5, "hf")):
        folder = Path(shutil.copytree(folders / name, tmp_path / name))
        (folder / "chat_template.jinja").write_text(template)
        command = [sys.executable, "-m", "launch.cli", "prepare", "sample", "--tokenizer", name, "--out", program]
        done = run_to_its_end(command, env=environment(program), timeout=300, cwd=tmp_path)
        assert done.status == 0, done.err[-3000:]
        made[program] = (tmp_path / program / "training.jsonl").read_text()
    assert made[OWN] == made[TRANSFORMERS5]
    assert '"input": "2025-08-05nullt2developer: ' in made[OWN]
