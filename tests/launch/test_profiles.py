"""Cluster profiles: what is read, and what is refused in which words."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from common.errors import ConfigurationError
from launch.executors.profiles import Profile, load_profile, split_overrides
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
        ("slurm: {ssh: {host: h}}", ["slurm.ssh lacks user"]),
        ("slurm: 3", ["slurm holds no keys but 3"]),
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


# ---- secrets by value ----------------------------------------------------------------------------------------------

SECRET = "hf_" + "AbCdEfGhIjKlMnOpQrStUv"
BY_VALUE = [
    "environment: {HF_TOKEN: X}",
    "environment: {hf_token: X}",
    "environment: {WANDB_API_KEY: X}",
    "environment: {KAGGLE_KEY: X}",
    "environment: {AWS_SECRET_ACCESS_KEY: X, AWS_ACCESS_KEY_ID: Y}",
    "environment: {MLFLOW_TRACKING_PASSWORD: X}",
    "environment: {HF_TOKEN: [X]}",
    "environment: {HF_TOKEN: {a: X}}",
    "environment: {HARMLESS: X}",
    "environment: {http_proxy: 'http://me:X@proxy:3128'}",
    "environment: HF_TOKEN=X",
    "environment: [HF_TOKEN=X]",
    "secrets: {HF_TOKEN: X}",
    "secrets: [HF_TOKEN=X]",
    "secrets: [{HF_TOKEN: X}]",
    "secrets: X=X",
    "setup: export HF_TOKEN=X",
    "setup: |\n  module load cuda\n  export WANDB_API_KEY='X'; true",
    "setup: curl -H 'Authorization: Bearer X' https://example.org",
    "slurm: {sbatch: {export: 'ALL,HF_TOKEN=X'}}",
    "slurm: {srun: ['--export=ALL,HF_TOKEN=X']}",
    "slurm: {comment: X}",
    "container: {image: 'https://me:X@registry/image'}",
    "skypilot: {file_mounts: {/token: X}}",
]


@pytest.mark.parametrize("text", BY_VALUE)
def test_a_secret_by_value_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("X", SECRET))
    with pytest.raises(ConfigurationError, match=r"secret|environment holds no names") as refused:
        load_profile(file, [])
    assert SECRET not in str(refused.value)
    assert "mine.yaml" in str(refused.value)


@pytest.mark.parametrize("override", ["environment.HF_TOKEN=X", "secrets.HF_TOKEN=X", "secrets=X", "setup=HF_TOKEN=X"])
def test_a_secret_on_the_command_line_is_not_shown(tmp_path: Path, override: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("secrets: [HF_TOKEN]\n")
    with pytest.raises(ConfigurationError) as refused:
        load_profile(file, ["cluster." + override.replace("X", SECRET)])
    assert SECRET not in str(refused.value)


def test_the_remedy_names_the_variable() -> None:
    with pytest.raises(ConfigurationError, match=r"export WANDB_API_KEY=….*secrets: \[WANDB_API_KEY\]"):
        load_profile(None, ["cluster.environment.WANDB_API_KEY=abc"])


def test_what_only_sounds_like_a_secret_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "environment: {TOKENIZERS_PARALLELISM: 'true', HF_TOKEN_PATH: /run/token, MAX_TOKENS: '7', NCCL_IB_PKEY: '1',\n"
        "  HTTPS_PROXY: 'http://proxy:3128', HF_ENDPOINT: 'https://hub.example.org/a:b@c'}\n"
        "secrets: [HF_TOKEN, WANDB_API_KEY]\n"
        'setup: |\n  export HF_TOKEN=$(cat ~/.token)\n  export WANDB_API_KEY="$MINE" HF_TOKEN_PATH=/x; export KEY=\n'
    )
    assert load_profile(file, []).environment["HF_TOKEN_PATH"] == "/run/token"


# ---- what a shell would read ---------------------------------------------------------------------------------------

SHELL = [
    "a b",
    "$(id)",
    "`id`",
    "a;id",
    "a&id",
    "a|id",
    "a>b",
    "a*",
    "a'b",
    'a"b',
    "a\nb",
    "a\\b",
    "~a",
    "$HOME",
    "-rm",
    "",
]


@pytest.mark.parametrize("text", SHELL)
@pytest.mark.parametrize("key", ["container.image", "container.mounts", "slurm.ssh.host", "slurm.ssh.jobs"])
def test_words_that_a_shell_would_take_apart(tmp_path: Path, key: str, text: str) -> None:
    file = tmp_path / "mine.yaml"
    *parents, last = key.split(".")
    ssh: dict[str, object] = {"host": "h", "user": "u", "jobs": "/j"} if "ssh" in key else {}
    tree: object = ssh | {last: [text] if last == "mounts" else text}
    for parent in reversed(parents):
        tree = {parent: tree}
    file.write_text(json.dumps(tree))
    with pytest.raises(ConfigurationError, match=rf"{key}.* (would take apart|on one line)") as refused:
        load_profile(file, [])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["A B", "X;touch x;Y", "1A", "A-B", "A\nB", "A=B", "$A", "", "Ä"])
def test_names_of_variables(tmp_path: Path, name: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps({"environment": {name: "1"}}))
    with pytest.raises(ConfigurationError, match="is no name of a variable"):
        load_profile(file, [])
    file.write_text(json.dumps({"secrets": [name]}))
    with pytest.raises(ConfigurationError, match="secrets is a list of names"):
        load_profile(file, [])


@pytest.mark.parametrize(
    "key", ["account", "partition", "qos", "mem", "constraint", "exclude", "comment", "signal", "sbatch.mail-type"]
)
@pytest.mark.parametrize("text", ["a\n#SBATCH --uid=0", "a\r#b", "a\0b", "a\u2028b"])
def test_an_option_of_sbatch_is_one_line(tmp_path: Path, key: str, text: str) -> None:
    file = tmp_path / "mine.yaml"
    tree: object = text
    for part in reversed(key.split(".")):
        tree = {part: tree}
    file.write_text(json.dumps({"slurm": tree}))
    with pytest.raises(ConfigurationError, match=rf"slurm\.{key} is .*: write it on one line"):
        load_profile(file, [])


@pytest.mark.parametrize("name", ["a b", "a\nb", "x=y", "--uid", ""])
def test_names_of_sbatch_options(tmp_path: Path, name: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps({"slurm": {"sbatch": {name: "1"}}}))
    with pytest.raises(ConfigurationError, match=r"slurm\.sbatch's option is"):
        load_profile(file, [])


def test_images_as_registries_and_enroot_name_them(tmp_path: Path) -> None:
    for image in (
        "nvcr.io/nvidia/pytorch:26.02-py3",
        "nvcr.io#nvidia/pytorch:26.02-py3",
        "docker://registry:5000/a/b@sha256:0a1b",
        "/lustre/images/gpt-oss.sqsh",
        "docker:gpt-oss-nemo:latest",
    ):
        file = tmp_path / "mine.yaml"
        file.write_text(json.dumps({"container": {"image": image}}))
        assert load_profile(file, []).container.image == image


def test_a_comment_of_several_words_stays_one(tmp_path: Path) -> None:
    assert load_profile(None, ["cluster.slurm.comment=night run; $5"]).slurm.comment == "night run; $5"


def test_a_bomb_of_aliases_is_a_sentence(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    file = tmp_path / "mine.yaml"
    file.write_text("\n".join(lines) + "\nenvironment: *a11\n")
    with pytest.raises(ConfigurationError, match=r"mine.yaml cannot be read as YAML \(its aliases"):
        load_profile(file, [])


@pytest.mark.parametrize("as_file", [True, False], ids=["script", "bash -c"])
@pytest.mark.parametrize(
    ("setup", "failed"),
    [
        ("source missing", "source missing"),
        ("export A=1\nmodule_of_nobody load cuda\nexport B=2", "module_of_nobody load cuda"),
        ("source tries", None),
        ("source ends_badly", "source ends_badly"),
        ("false || true\nif false; then :; fi\nhelper() { false; true; }; helper", None),
    ],
)
def test_a_setup_that_fails_is_named(tmp_path: Path, setup: str, failed: str | None, as_file: bool) -> None:
    (tmp_path / "tries").write_text("false\ntrue\n")
    (tmp_path / "ends_badly").write_text("true\nfalse\n")
    script = f"{Profile(setup=setup).strict_setup}\nfalse\necho on it goes\n"
    (tmp_path / "script").write_text(script)
    command = ["bash", "script"] if as_file else ["bash", "-c", script]
    environment = {"PATH": "/usr/bin:/bin:."}  # bash looks for what is sourced in PATH
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.stdout == ("" if failed else "on it goes\n")
    assert ran.returncode == (1 if failed else 0)
    said = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert said == ([f"error: the setup failed at: {failed}: mend it in the profile"] if failed else [])
