from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigurationError
from common.values import parse_value
from pipeline.loading import configured, make_run, write_run

TINY = Path(__file__).parents[2] / "recipes" / "gpt_oss_tiny_lora.py"


def at(tree: Any, path: str) -> Any:
    for name in path.split("."):
        tree = tree[name]
    return tree


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.config.lr=2e-4", 2e-4),
        ("optim.config.lr=1", 1.0),
        ("peft.dim=16", 16),
        ("trainer.max_steps=50", 50),
        ("trainer.strategy.tensor_model_parallel_size=2", 2),
        ("peft.target_modules=[linear_qkv]", ["linear_qkv"]),
        ("data.source=../a b/tickets.csv", "../a b/tickets.csv"),
        ("data.global_batch_size=32", 32),
        ("data.prepare.seed=7", 7),
        ("model.toy.num_hidden_layers=3", 3),
        ("peft=null", None),
        ("pretraining=null", None),
        ("name=mine", "mine"),
    ],
)
def test_key_value_reaches_the_field(override: str, value: Any) -> None:
    tree = configured(TINY, [override])
    assert at(tree, override.partition("=")[0]) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sorce=x", "data.source"),
        ("peft.dimm=x", "peft.dim"),
        ("pfet.dim=8", "peft"),
        ("trainer.max_step=5", "trainer.max_steps"),
        ("trainer.strategy.tensor_parallel_size=2", "tensor_model_parallel_size"),
        ("optim.config.learning_rate=1", "optim.config"),
        ("trainer.max_steps", "no key=value"),
        ("=5", "no key=value"),
        ("data.global_batch_size=many", "data.global_batch_size should be a whole number, not 'many'"),
        ("trainer.max_steps=soon", "cannot stand for"),
        ("data.source.file=x", "plain value"),
    ],
)
def test_what_does_not_fit_is_an_error_that_helps(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message.replace(".", r"\.")):
        configured(TINY, [override])


def test_arguments_that_the_recipe_does_not_name_are_checked_against_nemo() -> None:
    tree = configured(TINY, ["trainer.gradient_clip_val=1.0", "trainer.strategy.ckpt_parallel_save=false"])
    assert at(tree, "trainer.gradient_clip_val") == 1.0
    assert at(tree, "trainer.strategy.ckpt_parallel_save") is False


def test_overrides_name_the_run_and_the_same_ones_find_it_again(tmp_path: Path) -> None:
    plain = make_run(TINY, [], tmp_path)
    changed = make_run(TINY, ["peft.dim=8", "trainer.max_steps=5"], tmp_path)
    again = make_run(TINY, ["trainer.max_steps=5", "peft.dim=8"], tmp_path)
    assert plain.path.name == "gpt_oss_tiny_lora"
    assert changed.path.name.startswith("gpt_oss_tiny_lora-")
    assert changed.path == again.path
    assert make_run(TINY, ["peft.dim=8", "name=mine"], tmp_path).path.name == "mine"


@pytest.mark.parametrize(
    ("text", "value"),
    [("50", 50), ("2e-4", 2e-4), ("true", True), ("null", None), ("[a, b]", ["a", "b"]), ("x=y", "x=y"), ("[", "[")],
)
def test_values(text: str, value: Any) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.precision=fp16", "the recipe: model.precision should be one of bf16, fp32, not 'fp16'."),
        ("export.weights=int8", "the recipe: export.weights should be one of bf16, fp32, mxfp4, not 'int8'."),
        ("logger=print", "the recipe: logger should be one of tensorboard, wandb, mlflow, trackio, not 'print'."),
    ],
)
def test_a_value_that_is_none_of_the_allowed_is_refused_before_any_work(
    override: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as error:
        make_run(TINY.with_name("gpt_oss_20b_lora.py"), [override], tmp_path / "runs")
    assert str(error.value) == sentence
    assert list(tmp_path.iterdir()) == []


def test_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="gpt_oss_tiny_lora"):
        configured(TINY.with_name("gpt_oss_tyni_lora.py"), [])


def test_a_recipe_of_version_0_1_is_told_what_moved(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from recipes.config import Recipe\n\ndef recipe(): ...\n")
    with pytest.raises(ConfigurationError, match=r"mine\.py imports what is not there .*recipes\.schema\.recipe"):
        configured(tmp_path / "mine.py", [])


@pytest.mark.parametrize(("override", "value"), [("name=1e5", "1e5"), ("data.source=007", "007"), ("name=yes", "yes")])
def test_text_stays_text(override: str, value: str) -> None:
    assert at(configured(TINY, [override]), override.partition("=")[0]) == value


@pytest.mark.parametrize(
    "name",
    ["../evil", "../../evil", "/tmp/evil", "a/b", ".", "..", ".hidden", "-rf", "a b", "a\nb", "$(id)", "a=b"],
)
def test_a_run_stays_inside_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is no name of one folder inside"):
        make_run(TINY, [f"name={name}"], tmp_path / "runs")


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "runs" / "thesis").mkdir(parents=True)
    (tmp_path / "runs" / "thesis" / "chapter1").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"thesis holds chapter1 and no recipe\.yaml"):
        write_run(make_run(TINY, ["name=thesis"], tmp_path / "runs"))
    assert [path.name for path in (tmp_path / "runs" / "thesis").iterdir()] == ["chapter1"]


def test_names_that_people_give(tmp_path: Path) -> None:
    for name in ("mine", "2026-11-26_lr1e-4", "v1.2+x", "007"):
        assert make_run(TINY, [f"name={name}"], tmp_path / "runs").path == tmp_path / "runs" / name
