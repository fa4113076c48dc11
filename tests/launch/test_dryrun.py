"""What would run, line by line, for every example profile and every recipe.

`UPDATE_GOLDEN=1 pytest tests/launch/test_dryrun.py` writes the expected files anew; read their diff.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from launch.executors.profiles import EXECUTORS
from tests.conftest import REPOSITORY, nemo_run
from tests.launch.conftest import DryRun

# Each executor spells these in its own way.
RESOURCES = (
    r"(?:#SBATCH --nodes=|--nnodes |num_nodes: )(\d+)",
    r"(?:--nproc-per-node |nproc_per_node: |nprocs_per_node: )(\d+)",
    r"(?:--gpus-per-node=|--gres=gpu:|--gpus |gpus_per_node: )(\d+)",
)
GOLDEN = Path(__file__).parent / "golden"
PROFILES = sorted((REPOSITORY / "clusters").glob("*.yaml"))
RECIPES = sorted(
    file
    for folder in (REPOSITORY / "recipes", Path(__file__).parent / "recipes")
    for file in folder.glob("*.py")
    if "def recipe()" in file.read_text()
)
TINY, LORA_20B = REPOSITORY / "recipes" / "gpt_oss_tiny_lora.py", Path(__file__).parent / "recipes" / "lora_20b.py"
PYXIS = REPOSITORY / "clusters" / "slurm_pyxis.yaml"


def changed_lines(before: str, after: str) -> list[str]:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line.startswith(("- ", "+ "))]


def anonymous(text: str) -> str:
    """Without the ids of whoever runs the tests."""
    return re.sub(r"--user \d+:\d+", "--user <uid>:<gid>", text)


@pytest.mark.parametrize("recipe", [TINY, LORA_20B], ids=lambda file: file.stem)
@pytest.mark.parametrize("profile", [*PROFILES, None], ids=lambda file: file.stem if file else "local")
def test_golden(profile: Path | None, recipe: Path, dry: DryRun) -> None:
    golden(f"{name_of(profile)}--{recipe.stem}.txt", anonymous(dry(profile, recipe)))


def test_what_the_other_recipes_get(dry: DryRun) -> None:
    """Of each profile and recipe: stages, and how many of them are given so many nodes, processes a node and GPUs."""
    rows = [f"{'profile':14} {'recipe':18} {'stages':>6}  nodes      processes  GPUs"]
    for profile, recipe in itertools.product([*PROFILES, None], RECIPES):
        stages = re.split(r"^(?:# --- \w+ ---|\w+: python|\w+: torchrun)", dry(profile, recipe), flags=re.MULTILINE)[1:]
        counts = "  ".join(f"{tally(pattern, stages):9}" for pattern in RESOURCES)
        rows.append(f"{name_of(profile):14} {recipe.stem:18} {len(stages):6}  {counts}".rstrip())
    golden("counts.txt", "\n".join(rows) + "\n")


def tally(pattern: str, stages: list[str]) -> str:
    """How many stages name which number: `2×8` for two stages with 8."""
    named = Counter(int(number[1]) for stage in stages if (number := re.search(pattern, stage)))
    return ",".join(f"{count}×{number}" for number, count in sorted(named.items())) or "-"


def golden(name: str, text: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text()


def name_of(profile: Path | None) -> str:
    return profile.stem if profile else "local"


def test_every_executor_has_an_example() -> None:
    named = {re.search(r"^executor: (\w+)", file.read_text(), re.M)[1] for file in PROFILES}  # type: ignore[index]
    assert named | {"local"} == set(EXECUTORS)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("cluster.slurm.partition=h200", "#SBATCH --partition=h200"),
        ("cluster.slurm.time=01:00:00", "#SBATCH --time=01:00:00"),
        ("cluster.slurm.qos=high", "#SBATCH --qos=high"),
        ("cluster.slurm.signal=TERM@300", "#SBATCH --signal=TERM@300"),
        ("cluster.environment.NCCL_DEBUG=INFO", "export NCCL_DEBUG=INFO"),
    ],
)
def test_one_value_changes_one_line_of_a_script(override: str, wanted: str, dry: DryRun) -> None:
    def finetune(text: str) -> str:
        return text.partition("# --- finetune ---")[2].partition("# --- evaluate ---")[0]

    before, after = finetune(dry(PYXIS, LORA_20B)), finetune(dry(PYXIS, LORA_20B, override))
    changes = changed_lines(before, after)
    assert [line[0] for line in changes] == ["-", "+"]
    assert changes[1] == f"+ {wanted}"


def test_one_value_changes_one_line_of_docker(dry: DryRun) -> None:
    profile = REPOSITORY / "clusters" / "workstation.yaml"
    only = ("trainer.devices=1", "trainer.num_nodes=1", "trainer.strategy.expert_model_parallel_size=1", "name=one")
    before = dry(profile, LORA_20B, overrides=only).partition("# --- finetune ---")[2]
    after = dry(profile, LORA_20B, "cluster.docker.shm_size=32g", overrides=only).partition("# --- finetune ---")[2]
    assert "--gpus 1" in before
    assert set(changed_lines(before, after)) == {"-   --shm-size 16g \\", "+   --shm-size 32g \\"}


def test_gpus_only_where_training_runs(dry: DryRun) -> None:
    stages = re.split(r"# --- (\w+) ---\n", dry(PYXIS, LORA_20B))[1:]
    scripts = dict(zip(stages[::2], stages[1::2], strict=True))
    with_gpus = {name for name, script in scripts.items() if "#SBATCH --gpus-per-node=8" in script}
    assert with_gpus == {"finetune", "evaluate"}
    assert {name for name, script in scripts.items() if "--partition=cpu" in script} == {"prepare", "import", "export"}
    assert {name for name, script in scripts.items() if "#SBATCH --nodes=2" in script} == with_gpus


def test_a_stage_waits_for_what_it_reads(dry: DryRun) -> None:
    text = dry(PYXIS, LORA_20B)
    waits = dict(re.findall(r"# --- (\w+) ---\n# sbatch --requeue --parsable(?: --dependency=afterok:(\S+))? ", text))
    assert waits == {
        "prepare": "",
        "import": "",
        "finetune": "<prepare>:<import>",
        "evaluate": "<prepare>:<finetune>",
        "export": "<finetune>:<evaluate>",
    }
    assert text.count("#SBATCH --kill-on-invalid-dep=yes") == 5


@pytest.mark.slow
def test_a_dry_run_touches_nothing_and_is_quick(tmp_path: Path) -> None:
    started = time.perf_counter()
    ran = nemo_run("launch", TINY, "--cluster", PYXIS, "--dryrun", cwd=tmp_path)
    assert ran.status == 0, ran.err
    assert time.perf_counter() - started < 15, "under five seconds on a quiet machine"
    assert list(tmp_path.iterdir()) == []
    assert ran.out.count("#!/bin/bash") == 7


@pytest.mark.slow
def test_help_is_quick(tmp_path: Path) -> None:
    best = 10.0
    for _ in range(3):
        started = time.perf_counter()
        assert nemo_run("--help", cwd=tmp_path).status == 0
        best = min(best, time.perf_counter() - started)
    assert best < 1.0, "under half a second on a quiet machine"
