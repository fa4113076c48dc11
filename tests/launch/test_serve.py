"""What `nemo-run serve` runs, from the shapes and a profile; and how it waits, speaks and ends, on a small server."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from common.errors import CheckpointError, ConfigurationError, LaunchError
from converters.toy_checkpoint import write_toy_checkpoint
from launch.cli import app
from modeling.hf_config import find_config
from planning.serving_memory import RESERVE, TICKETS, cache_bytes, plan_serving
from serving.vllm_arguments import arguments, ensure_cpu_serves, servable
from tests.conftest import REPOSITORY, free_port, nemo_run

SIZES = {
    "num_hidden_layers": 2, "num_local_experts": 4, "hidden_size": 64, "intermediate_size": 96, "head_dim": 32,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320, "num_experts_per_tok": 2,
}  # fmt: skip
# Speaks enough of vLLM: its command line, its signs of life, its end by SIGTERM, and a child that must end with it.
FAKE = f"""#!{sys.executable}
import http.server, json, os, subprocess, sys, time
assert sys.argv[1] == "serve", sys.argv
options = dict(zip(sys.argv[3:], sys.argv[4:]))
if options["--served-model-name"] == "broken":
    sys.exit("out of memory")
child = subprocess.Popen(["sleep", "600"])
seen = {{"argv": sys.argv[1:], "child": child.pid, "kv": os.environ.get("VLLM_CPU_KVCACHE_SPACE")}}
with open(os.environ["FAKE_SEEN"], "w") as file:
    json.dump(seen, file)
ready = time.monotonic() + 1
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if time.monotonic() > ready else 503)
        self.end_headers()
    def log_message(self, *arguments): ...
print("loading", flush=True)
http.server.HTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    write_toy_checkpoint(folder, config=SIZES, weights="bf16")
    return folder


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "vllm"
    file.write_text(FAKE)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("FAKE_SEEN", str(tmp_path / "seen.json"))
    return file


def test_the_cache_is_what_the_layers_keep() -> None:
    config = find_config("gpt-oss-20b")  # 12 sliding layers of 128 tokens, 12 full ones; 8 groups of 64
    assert cache_bytes(config, 4096) == 2 * 8 * 64 * 2 * (12 * 4096 + 12 * 128)
    assert cache_bytes(config, 100) == 2 * 8 * 64 * 2 * 24 * 100


@pytest.mark.parametrize(
    ("model", "weights", "gpus", "memory", "tensor"),
    [
        ("gpt-oss-20b", 13_761_264_768, 1, 80, 1),
        ("gpt-oss-20b", 13_761_264_768, 1, 24, 1),
        ("gpt-oss-20b", 41_829_514_368, 8, 24, 4),
        ("gpt-oss-120b", 65_248_815_744, 8, 80, 1),
        ("gpt-oss-120b", 65_248_815_744, 8, 48, 2),
        ("gpt-oss-120b", 233_658_313_344, 8, 80, 4),
        ("gpt-oss-120b", 65_248_815_744, 8, None, 1),
    ],
)
def test_as_few_gpus_as_hold_it(model: str, weights: int, gpus: int, memory: int | None, tensor: int) -> None:
    plan = plan_serving(find_config(model), weights, 4096, gpus, memory and memory * 10**9)
    assert plan.tensor == tensor
    if memory:
        assert (weights + plan.cache) / tensor + RESERVE <= 0.9 * memory * 10**9
    assert plan.cache == TICKETS * cache_bytes(find_config(model), 4096)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(LaunchError, match=r"236\.1 GB of weights and cache .* do not fit 2 GPUs of 80 GB"):
        plan_serving(find_config("gpt-oss-120b"), 233_658_313_344, 4096, 2, 80 * 10**9)


def test_an_adapter_is_served_on_its_base(export: Path, tmp_path: Path) -> None:
    def adapter(base: str, **more: Any) -> Path:
        (tmp_path / "adapter").mkdir(exist_ok=True)
        stated = {"base_model_name_or_path": base, "r": 16} | more
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(stated))
        return tmp_path / "adapter"

    served = servable(adapter(str(export), rank_pattern={"experts": 24}))
    assert served.weights == sum(file.stat().st_size for file in export.glob("*.safetensors"))
    plan = plan_serving(served.config, served.weights, 512, 1, None)
    words = shlex.join(arguments(served, plan, "tickets", "127.0.0.1", 8000, on_cpu=False))
    assert words == (
        f"serve {export} --host 127.0.0.1 --port 8000 --max-model-len 512 --dtype bfloat16 --enable-lora "
        f"--max-lora-rank 32 --lora-modules tickets={tmp_path / 'adapter'}"
    )
    with pytest.raises(ConfigurationError, match="adapters on experts on GPUs only"):
        ensure_cpu_serves(served, "avx2")
    published = servable(adapter("openai/gpt-oss-20b"))
    assert published.model == "openai/gpt-oss-20b"
    assert 13.6e9 < published.weights < 13.9e9
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="names no base or no rank"):
        servable(tmp_path / "adapter")


def test_what_a_cpu_does_not_serve(tmp_path: Path) -> None:
    write_toy_checkpoint(tmp_path / "mxfp4", config=SIZES)
    write_toy_checkpoint(tmp_path / "odd", config=SIZES | {"head_dim": 16}, weights="bf16")
    with pytest.raises(ConfigurationError, match="MXFP4 on a CPU only with AMX"):
        ensure_cpu_serves(servable(tmp_path / "mxfp4"), "avx2")
    ensure_cpu_serves(servable(tmp_path / "mxfp4"), "avx2 amx_tile")
    with pytest.raises(ConfigurationError, match="this model has 16, 64 and 96"):
        ensure_cpu_serves(servable(tmp_path / "odd"), "avx2")
    with pytest.raises(ConfigurationError, match="no AVX2"):
        ensure_cpu_serves(servable(tmp_path / "odd"), "sse4_2")
    with pytest.raises(CheckpointError, match="neither an exported model nor a PEFT adapter"):
        servable(tmp_path)


PROFILES = {
    "docker": "executor: docker\ngpus_per_node: 1\nenvironment: {HF_HOME: /data}\nsecrets: [HF_TOKEN]\n",
    "slurm": "executor: slurm\ngpus_per_node: 8\nslurm: {account: mine, time: 60}\nsetup: module load vllm\n",
    "skypilot": "executor: skypilot\ngpus_per_node: 1\nsecrets: [HF_TOKEN]\nskypilot: {infra: aws, gpus: H100}\n",
}


@pytest.mark.parametrize("executor", PROFILES)
def test_where_a_profile_says(export: Path, tmp_path: Path, executor: str) -> None:
    (tmp_path / "cluster.yaml").write_text(PROFILES[executor])
    ran = CliRunner().invoke(app, ["serve", str(export), "--cluster", str(tmp_path / "cluster.yaml"), "--dryrun"])
    assert ran.exit_code == 0, ran.output
    host = "127.0.0.1" if executor == "docker" else "0.0.0.0"
    vllm = f"serve {export} --host {host} --port 8000 --max-model-len 4096 --dtype bfloat16 --served-model-name tickets"
    told = ran.output.partition("\n")[2]
    if executor == "docker":
        assert told.startswith("docker run --rm --name nemo-run-serve-8000 --network host --gpus 1 --shm-size 16g")
        assert f"--volume {export}:{export}:ro --env HF_HOME=/data" in told
        assert f"--env HF_TOKEN --entrypoint vllm vllm/vllm-openai:v0.32.0 {vllm}\n" in told
    elif executor == "slurm":
        assert (
            "srun --unbuffered --kill-on-bad-exit=1 --job-name=serve-tickets --nodes=1 --ntasks=1 --account=mine"
            in told
        )
        assert "--account=mine --time=60 --gpus-per-node=1 bash -c 'depth=" in told
        assert f"exec vllm {vllm}'\n" in told
    else:
        task = yaml.safe_load(told.partition("sky launch")[0])
        assert task["resources"] == {
            "infra": "aws", "accelerators": "H100:1", "image_id": "docker:vllm/vllm-openai:v0.32.0", "ports": 8000,
        }  # fmt: skip
        assert task["run"] == f"vllm {vllm}\n"
        assert task["secrets"] == {"HF_TOKEN": None}
        assert task["file_mounts"] == {str(export): str(export)}
        assert "sky launch --yes --cluster gpt-oss-serve-8000" in told


def test_there_is_no_server(export: Path, tmp_path: Path) -> None:
    ran = nemo_run("serve", export, "--vllm", tmp_path / "nothing", cwd=tmp_path)
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert "make serving-env" in ran.err
    assert "--vllm vllm/bin/vllm" in ran.err


def serving(export: Path, fake: Path, *options: str) -> subprocess.Popen[str]:
    words = ["serve", str(export), "--vllm", str(fake), *options]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "launch.cli", *words]
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.slow
@pytest.mark.parametrize("what", [signal.SIGINT, signal.SIGTERM])
def test_it_waits_speaks_and_ends_with_all_its_processes(export: Path, fake: Path, what: signal.Signals) -> None:
    port = free_port()
    process = serving(export, fake, "--port", str(port))
    assert process.stdout is not None
    process.stdout.readline()
    assert process.stdout.readline() == f"serving tickets at http://127.0.0.1:{port}; Ctrl-C ends it\n"
    seen = json.loads(fake.with_name("seen.json").read_text())
    assert seen["kv"] == "1"
    assert is_alive(seen["child"])
    process.send_signal(what)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, "loading" in err) == (0, "ended tickets\n", True)
    end = time.monotonic() + 10
    while is_alive(seen["child"]) and time.monotonic() < end:
        time.sleep(0.1)
    assert not is_alive(seen["child"])


@pytest.mark.slow
def test_a_server_that_does_not_come_up(export: Path, fake: Path) -> None:
    process = serving(export, fake, "--name", "broken")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines()[-2:] == [
        "out of memory",
        "error: the server ended with status 1 before it was ready: see above why.",
    ]


def test_a_port_that_another_program_has(export: Path, fake: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ran = CliRunner().invoke(app, ["serve", str(export), "--vllm", str(fake), "--port", port])
    assert isinstance(ran.exception, LaunchError)
    assert f"port {port} of 127.0.0.1 cannot be had" in str(ran.exception)
