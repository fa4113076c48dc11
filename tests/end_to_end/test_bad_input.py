"""Wrong input: one sentence, exit status 1, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from converters.toy_checkpoint import write_toy_checkpoint
from tests.conftest import REPOSITORY, Ran, nemo_run
from tests.shapes import lopsided

SIZES = lopsided(
    {
        "num_hidden_layers": 2,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "head_dim": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "sliding_window": 8,
        "vocab_size": 300,
    }
)


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    folder = tmp_path / "hf"
    write_toy_checkpoint(folder, config=SIZES, shards=2)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def refuses(ran: Ran, *words: str) -> None:
    assert ran.status == 1
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ran.err
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err


def imports(hf: Path) -> Ran:
    ran = nemo_run("convert", "import", hf, hf.parent / "nemo", cwd=hf.parent)
    assert sorted(path.name for path in hf.parent.iterdir()) in (["hf"], ["hf", "nemo"])
    assert ran.status == 0 or not (hf.parent / "nemo").exists()
    return ran


def test_whole_checkpoint_is_imported(hf: Path) -> None:
    assert imports(hf).status == 0


def test_other_model_type(hf: Path) -> None:
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    refuses(imports(hf), "llama", "gpt_oss")


def test_truncated_shard(hf: Path) -> None:
    shard = hf / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    refuses(imports(hf), shard.name)


def test_missing_tokenizer(hf: Path) -> None:
    (hf / "tokenizer.json").unlink()
    refuses(imports(hf), "tokenizer.json")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "empty"),
        ("subject,priority\na,b\n", "queue"),
        ("queue,priority\na,b\n", "--body"),
        ("queue,body\n", "no tickets"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, content: str, word: str) -> None:
    (tmp_path / "tickets.csv").write_text(content)
    refuses(nemo_run("prepare", "tickets.csv", "--out", "data", cwd=tmp_path), "tickets.csv", word)
    assert [path.name for path in tmp_path.iterdir()] == ["tickets.csv"]


def test_missing_table(tmp_path: Path) -> None:
    refuses(nemo_run("prepare", "nowhere.csv", "--out", "data", cwd=tmp_path), "nowhere.csv")


def test_unknown_recipe(tmp_path: Path) -> None:
    ran = nemo_run("launch", REPOSITORY / "recipes" / "gpt_oss_tyni.py", cwd=tmp_path)
    refuses(ran, "gpt_oss_tyni.py", "gpt_oss_tiny_lora.py")


def test_unknown_key(tmp_path: Path) -> None:
    ran = nemo_run("launch", REPOSITORY / "recipes" / "gpt_oss_tiny_lora.py", "data.sorce=x", cwd=tmp_path)
    refuses(ran, "data.source")
    assert not (tmp_path / "runs").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    ran = nemo_run("--debug", "prepare", "nowhere.csv", "--out", "data", cwd=tmp_path)
    assert ran.status == 1
    assert "Traceback" in ran.err
