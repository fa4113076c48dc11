"""What is refused before anything is started, and in which words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.errors import LaunchError
from launch import failures, preflight, run_status
from launch.estimates import disk_of
from launch.executors import slurm_jobs, tunnel
from launch.executors.build import arguments_for
from launch.executors.profiles import load_profile
from launch.launch_plan import LaunchPlan
from pipeline.loading import make_run
from pipeline.pending import Selection
from pipeline.stage import stages_of
from tests.conftest import REPOSITORY, nemo_run

TINY = REPOSITORY / "recipes" / "gpt_oss_tiny_lora.py"
LORA_20B = REPOSITORY / "recipes" / "gpt_oss_20b_lora.py"


def refused(
    tmp_path: Path, *cluster: str, recipe: Path = TINY, overrides: tuple[str, ...] = (), only: str | None = None
) -> str:
    """Everything that stands in the way of a launch, as one text."""
    profile = load_profile(None, [f"cluster.{text}" for text in cluster])
    run = make_run(recipe, list(overrides), tmp_path / "runs")
    with pytest.raises(LaunchError) as error:
        preflight.check(LaunchPlan.of(run, profile, Selection(only)))
    return str(error.value)


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with an sbatch that takes everything."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "sacct", "scontrol"):
        (folder / name).write_text("#!/bin/sh\ncat >/dev/null\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_no_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sh", "test"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "sbatch is not to be found: launch from a login node" in refused(tmp_path, "executor=slurm")


@pytest.mark.usefixtures("fake_slurm", "store")
def test_all_failures_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(preflight, "_free", lambda path, tunnel: 10**12)
    text = refused(
        tmp_path,
        *("executor=slurm", "gpus_per_node=4", "gpu_memory=80GB", "secrets=[HF_TOKEN]"),
        *("container.image=/nowhere/image.sqsh", "container.mounts=[/nowhere/data:/data]"),
        recipe=LORA_20B,
        overrides=("trainer.devices=8", "data.source=/nowhere/tickets.csv"),
    )
    assert text.startswith("5 things stand in the way:")
    for words in (
        "trains on 8 GPUs a node and the profile has 4",
        "there is no image /nowhere/image.sqsh",
        "/nowhere/tickets.csv, which the recipe names, does not exist",
        "/nowhere/data is to be mounted and does not exist",
        "HF_TOKEN is not set",
    ):
        assert words in text


@pytest.mark.usefixtures("fake_slurm", "store")
def test_training_that_does_not_fit(tmp_path: Path) -> None:
    text = refused(tmp_path, "executor=slurm", "gpus_per_node=1", "gpu_memory=24GB", recipe=LORA_20B, only="finetune")
    assert "of each GPU, which has 24 GB" in text
    assert "recompute activations in full" in text


@pytest.mark.usefixtures("store")
def test_stage_without_its_input(tmp_path: Path) -> None:
    text = refused(tmp_path, only="finetune")
    assert "stage finetune reads what import makes, and that is not there: start with --from import" in text


@pytest.mark.usefixtures("store")
def test_docker_needs_an_image(tmp_path: Path) -> None:
    assert "docker needs an image: set cluster.container.image" in refused(tmp_path, "executor=docker")


@pytest.mark.usefixtures("store")
def test_docker_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert "docker does not answer" in refused(tmp_path, "executor=docker", "container.image=a:b")


@pytest.mark.usefixtures("store")
def test_disk_of_a_run_that_stays_mxfp4() -> None:
    """13.8 GB each for the base and the export: blocks, scales, and 2.4 GB in bf16 beside them."""
    run = make_run(REPOSITORY / "recipes" / "gpt_oss_20b_lora.py", ["preset=cpu"], Path("runs"))
    assert disk_of(run.recipe, stages_of(run.recipe)) == pytest.approx(2 * 13.8e9 + 2e9, rel=0.01)
    bf16 = make_run(REPOSITORY / "recipes" / "gpt_oss_20b_lora.py", [], Path("runs"))
    assert disk_of(bf16.recipe, stages_of(bf16.recipe)) == pytest.approx(13.8e9 + 41.8e9 + 2e9, rel=0.01)


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_free", lambda path, tunnel: 10 * 10**9)
    for overrides, base in (((), 13.8), (("model.experts=bf16",), 41.8)):
        text = refused(tmp_path, recipe=LORA_20B, overrides=overrides)
        assert "GB and 10 GB are free: choose another disk with --runs" in text
        needed = int(text.partition("about ")[2].split()[0])
        assert base + 42 <= needed <= base + 48, "the base, an export of 41.8 GB, and adapters"


@pytest.mark.usefixtures("fake_slurm", "store")
def test_kaggle_needs_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "needs KAGGLE_API_TOKEN" in refused(tmp_path, "executor=slurm", overrides=("data.source=kaggle",))


def test_unreachable_login_node() -> None:
    keys = ("host=127.0.0.1", "user=nobody", "jobs=/jobs", "port=1")
    profile = load_profile(None, ["cluster.executor=slurm", *(f"cluster.slurm.ssh.{key}" for key in keys)])
    with pytest.raises(LaunchError, match=r"login node 127\.0\.0\.1 cannot be reached as nobody .*slurm\.ssh"):
        tunnel.connect(tunnel.tunnel_of(profile))


@pytest.mark.usefixtures("store")
def test_sbatch_that_refuses(tmp_path: Path, fake_slurm: Path) -> None:
    sbatch = fake_slurm / "sbatch"
    sbatch.write_text("#!/bin/sh\ncat >/dev/null\necho 'allocation failure: Invalid account' >&2\nexit 1\n")
    text = refused(tmp_path, "executor=slurm", "slurm.account=mine", "slurm.mem=9T")
    assert text.count("Invalid account") == 1, "one sentence for all stages"
    assert "model, prepare" in text
    assert "(--account=mine --mem=9T --nodes=1" in text


def test_unknown_stage_and_order(tmp_path: Path) -> None:
    run = make_run(TINY, [], tmp_path)
    with pytest.raises(LaunchError, match="no stage 'finetuning'"):
        Selection("finetuning").of(run)
    with pytest.raises(LaunchError, match="--only names one stage"):
        Selection("import", first="prepare").of(run)
    with pytest.raises(LaunchError, match="exchange --from and --until"):
        Selection(first="export", last="import").of(run)
    assert [stage.name for stage in Selection(first="import", last="finetune").of(run)] == [
        "import",
        "pretrain",
        "finetune",
    ]


@pytest.mark.parametrize("name", ["OUT_OF_MEMORY", "FAILED"])
def test_killed_for_memory(name: str) -> None:
    state = slurm_jobs.JobState(name, signal=9 if name == "FAILED" else 0)
    note = run_status._note(state, None, None)  # type: ignore[arg-type]
    assert "killed for memory" in note
    assert "cluster.slurm.mem" in note


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("noise\nerror: no tickets: name another source.\nmore", "no tickets: name another source."),
        ("Traceback\nValueError: bad\ntorch.x.ChildFailedError: x: y", "ValueError: bad"),
        ("srun: error: n1: task 0: Exited with exit code 2", "srun: error: n1: task 0: Exited with exit code 2"),
        ("step 1/2 loss: 3", None),
    ],
)
def test_the_last_error_line(log: str, told: str | None) -> None:
    assert failures.last_error(log) == told


def test_slurm_states() -> None:
    assert slurm_jobs._from_sacct("12|CANCELLED by 0|0:15|n1") == ("12", slurm_jobs.JobState("CANCELLED", 0, 15, "n1"))
    state = slurm_jobs._from_scontrol("JobId=3 JobState=PENDING Reason=Dependency ExitCode=0:0 NodeList=(null)")
    assert state == slurm_jobs.JobState("PENDING", 0, 0, "Dependency")
    assert state.active


@pytest.mark.slow
@pytest.mark.parametrize("command", [("status",), ("logs",), ("cancel",)])
def test_unknown_runs(command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "home"))
    ran = nemo_run(*command, "runs/none", cwd=tmp_path)
    assert ran.status == 1
    assert "there is no run runs/none" in ran.err


@pytest.mark.parametrize("name", ["my tickets", "$(id)", "a;b", "a:b", "a,b", "a'b", "a\nb", "`id`"])
@pytest.mark.parametrize("executor", ["slurm", "docker"])
def test_a_ticket_path_that_a_shell_would_take_apart(tmp_path: Path, executor: str, name: str) -> None:
    """Before anything is written for it: in a container it becomes a mount."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "t.csv").write_text("subject,body,queue\n")
    profile = load_profile(None, [f"cluster.executor={executor}", "cluster.container.image=image:1"])
    run = make_run(TINY, [f"data.source={tmp_path / name / 't.csv'}"], tmp_path / "runs")
    plan = LaunchPlan.of(run, profile, Selection("prepare"))
    with pytest.raises(LaunchError, match="is to be mounted into a container") as error:
        arguments_for(plan, plan.todo[0])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()
