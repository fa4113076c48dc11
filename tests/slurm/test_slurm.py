"""The launcher on a real Slurm: two nodes, dependencies, preemption, failure, plain sbatch."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Ran, wait_until
from tests.slurm.conftest import Login, jobs_of

pytestmark = [pytest.mark.slow, pytest.mark.foreign, pytest.mark.timeout(1800)]

TINY = REPOSITORY / "recipes" / "gpt_oss_tiny_lora.py"
LORA_20B = REPOSITORY / "recipes" / "gpt_oss_20b_lora.py"
SHORT = (
    "name=short",
    "trainer.num_nodes=2",
    "trainer.devices=1",
    "pretraining.max_steps=20",
    "trainer.max_steps=40",
    "trainer.log_every_n_steps=1",
    "evaluation.max_tickets=40",
)


def steps(file: Path) -> list[int]:
    """Steps of a training so far."""
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    except (OSError, ValueError):
        return []
    return [row["step"] for row in rows if "loss" in row]


def test_two_nodes_cancelled_requeued_and_finished(login: Login) -> None:
    run = login.cwd / "runs" / "short"

    # scancel in the middle: what follows is dropped, what is finished stays
    launched = login.launch(TINY, *SHORT)
    assert launched.status == 0, launched.err
    jobs = jobs_of(launched)
    assert list(jobs) == ["model", "prepare", "import", "pretrain", "finetune", "evaluate", "export"]
    again = login.launch(TINY, *SHORT)
    assert again.status == 1
    assert "wait for it, or nemo-run cancel" in again.err
    wait_until(lambda: len(steps(run / "pretrain" / "history.jsonl")) >= 2, 600, "two steps of pretraining")
    login.cluster.run("scancel", jobs["pretrain"])
    wait_until(lambda: login.cluster.state(jobs["export"]) == "CANCELLED", 120, "the last stage's cancellation")
    told = login.command("status", "runs/short")
    assert [line.split()[:2] for line in told.out.splitlines()[1:5]] == [
        ["model", "done"],
        ["prepare", "done"],
        ["import", "done"],
        ["pretrain", "cancelled"],
    ]

    # the same command goes on; a requeued job saves first and resumes where it was
    launched = login.launch(TINY, *SHORT)
    assert launched.status == 0, launched.err
    jobs = jobs_of(launched)
    assert list(jobs) == ["pretrain", "finetune", "evaluate", "export"]
    wait_until(lambda: len(steps(run / "finetune" / "history.jsonl")) >= 3, 900, "three steps of fine-tuning")
    login.cluster.run("scontrol", "requeue", jobs["finetune"])
    wait_until(lambda: login.cluster.state(jobs["finetune"]) == "PENDING", 120, "the requeue")
    assert "its checkpoint is saved" in (run / "logs" / "finetune.log").read_text()
    login.start_again(jobs["finetune"])
    wait_until(lambda: login.cluster.state(jobs["export"]) not in ("PENDING", "RUNNING"), 1200, "the last stage's end")
    assert {stage: login.cluster.state(job) for stage, job in jobs.items()} == dict.fromkeys(jobs, "COMPLETED")
    printed = login.command("logs", "runs/short", "finetune").out
    resumed = int(printed.partition("resumed at step ")[2].split()[0])
    assert 3 <= resumed < 40
    assert "step 40/40" in printed

    told = login.command("status", "runs/short")
    assert told.status == 0
    assert told.out.count(" done ") == 7
    details = json.loads((run / "stages" / "export.json").read_text())["details"]
    assert details["largest_logit_difference"] <= 1e-3
    done = login.launch(TINY, *SHORT)
    assert done.out.count("current, skipped") == 7
    assert jobs_of(done) == {}


def test_a_failing_stage_stops_the_rest_and_is_named(login: Login) -> None:
    table = login.cwd / "damaged.csv"
    table.write_text("queue,priority\na,b\n")
    ran = login.launch(TINY, "name=failing", f"data.source={table}", "--wait", timeout=300)
    assert ran.status == 1
    assert "stage model failed" in ran.err  # the first to read the tickets: the toy's tokenizer learns their words
    assert "damaged.csv" in ran.err
    assert "pretrain: cancelled" in ran.out
    told = login.command("status", "runs/failing")
    assert told.status == 1
    assert "damaged.csv" in told.out


def test_a_setup_that_fails_ends_the_job_and_is_named(login: Login) -> None:
    ran = login.launch(
        TINY, "name=unset", "--until", "model", "cluster.setup=source /nowhere/activate", "--wait", timeout=300
    )
    assert ran.status == 1
    assert "stage model failed: the setup failed at: source /nowhere/activate: mend it in the profile" in ran.err


def test_cancel_stops_what_waits(login: Login) -> None:
    launched = login.launch(TINY, "name=waiting", "--until", "import", "cluster.slurm.sbatch.begin=now+1hour")
    assert launched.status == 0, launched.err
    jobs = jobs_of(launched)
    assert len(jobs) == 3
    told = login.command("cancel", "runs/waiting")
    assert told.out.count("cancelled") == 3
    wait_until(lambda: {login.cluster.state(job) for job in jobs.values()} == {"CANCELLED"}, 30, "the cancellation")


def test_exported_scripts_run_without_nemo_run(login: Login) -> None:
    ran = login.launch(TINY, "name=plain", "--until", "import", "--export-script", "scripts")
    assert ran.status == 0, ran.err
    folder = (login.cwd / "scripts").rename(login.cwd / "elsewhere")
    environment = {"PATH": "/usr/bin:/bin", "HOME": os.environ["HOME"], **login.cluster.environment}
    done = subprocess.run(
        ["bash", str(folder / "submit.sh")], env=environment, cwd="/", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    jobs = dict(line.split(": job ") for line in done.stdout.splitlines())
    assert list(jobs) == ["model", "prepare", "import"]
    wait_until(
        lambda: all(login.cluster.state(job) == "COMPLETED" for job in jobs.values()), 300, "the end of all jobs"
    )
    assert (login.cwd / "runs" / "plain" / "stages" / "import.json").is_file()


@pytest.mark.parametrize(("options", "words"), [((), None), (("cluster.slurm.partition=none",), "partition")])
def test_the_20b_recipe_is_accepted_with_eight_gpus_a_node(
    login: Login, options: tuple[str, ...], words: str | None
) -> None:
    arguments = ("preset=8xh100", "data.source=sample", "--dryrun", "cluster.slurm.time=08:00:00", *options)
    shown = login.launch(LORA_20B, *arguments)
    script = shown.out.partition("# --- finetune ---")[2].partition("# --- evaluate ---")[0]
    assert "#SBATCH --gpus-per-node=8" in script
    tested = subprocess.run(
        ["sbatch", "--test-only"], input=script[script.index("#!") :], capture_output=True, text=True, timeout=60
    )
    if words is None:
        assert tested.returncode == 0, tested.stderr
        assert "to start at" in tested.stderr
        return
    assert tested.returncode != 0
    refused = login.launch(LORA_20B, *(text for text in arguments if text != "--dryrun"), "--only", "prepare")
    assert refused.status == 1
    assert words in refused.err
    assert "cluster.slurm.KEY=VALUE" in refused.err


def test_a_sweep_side_by_side_cancelled_finished_and_compared(login: Login) -> None:
    """Two runs at a time of six; what they share is made by the first and waited for by all."""
    sweep = (
        "name=six",
        "--sweep=optim.config.lr=1e-3,4e-3",
        "--sweep=peft.dim=2,4,8",
        "--parallel=2",
        "--until=evaluate",
        "trainer.devices=1",
        "trainer.strategy.expert_model_parallel_size=1",
        "model.toy.num_hidden_layers=2",
        "data.seq_length=512",
        "pretraining.max_steps=4",
        "trainer.max_steps=4",
        "trainer.limit_val_batches=1",
        "evaluation.max_tickets=20",
    )
    folder = login.cwd / "runs" / "six"

    def handed_in(launched: Ran) -> dict[str, list[str]]:
        """The ids of each run's jobs, in their order."""
        assert launched.status == 0, launched.err
        lines = re.findall(r"^(lr-\S+): (.* job .*)$", launched.out, re.M)
        return {name: re.findall(r"job (\d+)", jobs) for name, jobs in lines}

    def finished() -> list[str]:
        return [name for name in names if (folder / name / "stages" / "evaluate.json").is_file()]

    jobs = handed_in(login.launch(TINY, *sweep))
    names = list(jobs)
    assert [len(each) for each in jobs.values()] == [6, 2, 2, 2, 2, 2]
    wait_until(lambda: len(finished()) >= 2, 900, "the end of two runs")
    cancelled = login.command("cancel", "runs/six")
    assert cancelled.status == 0, cancelled.err
    assert "cancelled" in cancelled.out
    wait_until(lambda: login.cluster.run("squeue", "-h") == "", 120, "the cancellation")
    missing = [name for name in names if name not in finished()]
    assert 1 <= len(missing) <= 4

    again = handed_in(login.launch(TINY, *sweep, "--wait", timeout=900))
    assert list(again) == missing
    shown = login.command("status", "runs/six").out.splitlines()[1:]
    assert [line.split()[:2] for line in shown] == [[name, "done"] for name in names]
    assert finished() == names
    jobs_of_all = ",".join(job for each in again.values() for job in each)
    accounts = login.cluster.run("sacct", "-XnP", "--format=JobIDRaw,Start,End", "-j", jobs_of_all)
    times = {job: (start, end) for job, start, end in (line.split("|") for line in accounts.splitlines())}
    order = list(again.values())
    for earlier, later in zip(order, order[2:], strict=False):
        assert times[earlier[-1]][1] <= times[later[0]][0], "two at a time"

    compared = login.command("compare", "runs/six")
    assert compared.status == 0, compared.err
    assert [line.split()[0] for line in compared.out.splitlines()[1:7]] == names
    assert "waits for" not in compared.out
