"""Cluster profiles: what is read, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigurationError
from launch.executors.profiles import load_profile, split_overrides
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("file", sorted((REPOSITORY / "clusters").glob("*.yaml")), ids=lambda file: file.stem)
def test_examples_are_valid_and_name_nobody(file: Path) -> None:
    assert load_profile(file, []).executor in file.read_text()
    assert "nvidia.com" not in file.read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slurm: {partion: x}", ["'slurm.partion'", "slurm.partition"]),
        ("executer: slurm", ["'executer'", "executor"]),
        ("executor: pbs", ["executor", "local, docker, slurm", "'pbs'"]),
        ("gpus_per_node: many", ["gpus_per_node", "whole number", "'many'"]),
        ("slurm: {exclusive: 3}", ["slurm.exclusive", "true or false"]),
        ("secrets: HF_TOKEN", ["secrets", "list"]),
        ("slurm: {ssh: {host: h}}", ["slurm.ssh needs user"]),
        ("slurm: 3", ["slurm should hold keys"]),
        ("- a", ["no cluster profile"]),
        ("a: [", ["cannot be read as YAML"]),
    ],
)
def test_wrong_profiles(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        load_profile(file, [])
    for word in ["wrong.yaml", *words]:
        assert word in str(refused.value)


def test_missing_profile(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"clusters/"):
        load_profile(tmp_path / "none.yaml", [])


def test_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("executor: docker\ngpus_per_node: 2\nslurm: {partition: a, qos: b}")
    profile = load_profile(file, ["cluster.slurm.partition=c", "cluster.gpus_per_node=4"], "slurm")
    assert (profile.executor, profile.slurm.partition, profile.slurm.qos, profile.gpus_per_node) == (
        "slurm",
        "c",
        "b",
        4,
    )


def test_unknown_key_on_the_command_line() -> None:
    with pytest.raises(ConfigurationError, match=r"the command line.*slurm\.acount.*slurm\.account"):
        load_profile(None, ["cluster.slurm.acount=x"])


@pytest.mark.parametrize("text", ["04:30:00", '"04:30:00"'])
def test_times_need_no_quotes(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"slurm: {{time: {text}}}")
    assert load_profile(file, []).slurm.time == "04:30:00"
    assert load_profile(None, ["cluster.slurm.time=04:30:00"]).slurm.time == "04:30:00"


def test_overrides_of_profile_and_recipe_are_told_apart() -> None:
    assert split_overrides(["a=1", "cluster.b=2", "c.d=3"]) == (["a=1", "c.d=3"], ["cluster.b=2"])


@pytest.mark.parametrize(("text", "time"), [("240", "240"), ("'240'", "240"), ("1-00:00:00", "1-00:00:00")])
def test_plain_numbers_are_minutes_as_sbatch_has_them(tmp_path: Path, text: str, time: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"slurm: {{time: {text}, cpu: {{time: {text}}}}}")
    slurm = load_profile(file, []).slurm
    assert (slurm.time, slurm.cpu.time) == (time, time)
    assert load_profile(None, [f"cluster.slurm.time={text}"]).slurm.time == time


def test_what_is_no_time(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"slurm\.time: 'soon' is no time for Slurm: write minutes, HH:MM:SS"):
        load_profile(None, ["cluster.slurm.time=soon"])
