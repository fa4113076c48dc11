"""The points of a sweep, what their runs share, and what is refused, before anything runs."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from common.errors import ConfigurationError, LaunchError
from common.repository import REPOSITORY
from launch import preflight, run_status
from launch.executors.profiles import Profile, load_profile
from launch.sweep import Axis, Sweep, make_sweep, points_of
from launch.sweep_start import Queue, SweepPlan, launch_sweep, show_sweep
from pipeline.loading import make_run, write_run
from pipeline.pending import Selection
from pipeline.run_folder import RunFolder
from pipeline.stage import Details, is_current, record, stage_named
from pipeline.sweep_folder import is_sweep, makers, runs_of_sweep, share, title_of, write_sweep

TINY = REPOSITORY / "recipes" / "gpt_oss_tiny_lora.py"
LR, DIM = "optim.config.lr=1e-3,4e-3", "peft.dim=4,8,16"


def sweep_of(tmp_path: Path, *swept: str, overrides: tuple[str, ...] = (), count: int | None = None) -> Sweep:
    return make_sweep(TINY, overrides, swept, count, tmp_path / "runs")


def finish(run: RunFolder, name: str) -> None:
    """A stage's output as if it had run."""
    stage = stage_named(name)
    for folder in (stage.output(run), *stage.beside(run)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "made").write_text(f"by {run.path.name}")
    record(stage, run, Details(f"made by {run.path.name}"))


def linked(run: RunFolder) -> set[str]:
    return {path.name for path in run.path.iterdir() if path.is_symlink()}


# ---- points ----------------------------------------------------------------------------------------------------------


def test_the_grid_has_every_point_the_last_axis_fastest() -> None:
    points = points_of([Axis.of(LR), Axis.of(DIM)])
    assert [point.name for point in points] == [
        "lr-1e-3_dim-4",
        "lr-1e-3_dim-8",
        "lr-1e-3_dim-16",
        "lr-4e-3_dim-4",
        "lr-4e-3_dim-8",
        "lr-4e-3_dim-16",
    ]
    assert points[1].overrides == ("optim.config.lr=1e-3", "peft.dim=8")


def test_random_points_are_points_of_the_grid_and_always_the_same() -> None:
    axes = [Axis("a.x", tuple(map(str, range(100)))), Axis("a.y", tuple(map(str, range(100))))]
    points = points_of(axes, 20)
    assert points == points_of(axes, 20)
    places = [tuple(int(text.partition("=")[2]) for text in point.overrides) for point in points]
    assert len(set(places)) == 20
    assert places == sorted(places)
    assert len({x for x, _ in places}) > 10
    assert len(points_of([Axis.of(LR), Axis.of(DIM)], 7)) == 6, "more than there are"


def test_names_tell_keys_apart_and_hold_no_character_that_nemo_takes_apart() -> None:
    axes = [
        Axis.of(text) for text in ("pretraining.max_steps=1,2", "trainer.max_steps=3,4", "data.source=/a/b c.csv,x=y")
    ]
    names = [point.name for point in points_of(axes)]
    assert names[0] == "pretraining.max_steps-1_trainer.max_steps-3_source-b-c.csv"
    assert all(re.fullmatch(r"[\w.+-]+", name) for name in names)
    assert len(set(names)) == 8
    alike = points_of([Axis.of("peft.target_modules=[a,b],[a b]")])
    assert len({point.name for point in alike}) == 2
    assert alike[0].overrides == ("peft.target_modules=[a,b]",)
    long = points_of([Axis("data.source", ("x" * 300, "y" * 300))])
    assert all(len(point.name) <= 80 for point in long)


@pytest.mark.parametrize(
    ("swept", "words"),
    [
        (["peft.dim"], "write for example --sweep peft.dim=8,16"),
        (["peft.dim=8"], "names no values"),
        (["peft.dim=8,,16"], "names no values"),
        (["peft.dim=8,16,8"], "names 8 twice"),
        (["name=a,b"], "runs name themselves"),
        (["cluster.slurm.mem=1,2"], "what is swept is the recipe"),
        (["peft.dim=8,16", "peft.dim=4,32"], "peft.dim is given twice"),
        ([f"a.{key}={','.join(map(str, range(30)))}" for key in "xy"], "the grid has 900 points"),
        (["optim.config.lr=1e-3,0.001"], "lr-1e-3 and lr-0.001 are the same run in every stage"),
    ],
)
def test_what_is_no_sweep(tmp_path: Path, swept: list[str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        sweep_of(tmp_path, *swept)


def test_every_point_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as error:
        sweep_of(tmp_path, "data.epochs=1,-1,many", "peft.dim=4,8")
    text = str(error.value)
    assert text.startswith("2 things stand in the way:")
    assert "epochs--1_dim-4, epochs--1_dim-8: data.epochs is -1" in text
    assert "epochs-many_dim-4, epochs-many_dim-8: the recipe: data.epochs should be a number" in text


def test_the_same_command_finds_its_sweep_again_and_a_name_chooses_one(tmp_path: Path) -> None:
    first, again = sweep_of(tmp_path, LR, DIM), sweep_of(tmp_path, LR, DIM)
    assert re.fullmatch(r"gpt_oss_tiny_lora-sweep-[0-9a-f]{8}", first.folder.name)
    assert first.folder == again.folder
    others = [sweep_of(tmp_path, LR), sweep_of(tmp_path, DIM, LR), sweep_of(tmp_path, LR, DIM, count=3)]
    others.append(sweep_of(tmp_path, LR, DIM, overrides=("seed=1",)))
    assert len({each.folder for each in [first, *others]}) == 5
    named = sweep_of(tmp_path, LR, overrides=("name=mine", "seed=1"))
    assert [run.path for run in named.runs] == [tmp_path / "runs" / "mine" / f"lr-{lr}" for lr in ("1e-3", "4e-3")]
    assert [run.recipe.optimizer["lr"] for run in named.runs] == [1e-3, 4e-3]


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", "a b"])
def test_a_sweep_stays_inside_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="is no name of one folder inside"):
        sweep_of(tmp_path, LR, overrides=(f"name={name}",))


def test_a_folder_that_is_no_sweep_is_left_alone(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, LR, overrides=("name=short",))
    write_run(make_run(TINY, ["name=short"], tmp_path / "runs"))
    with pytest.raises(ConfigurationError, match=r"short holds recipe\.yaml and no sweep\.yaml: it is no sweep"):
        write_sweep(sweep.folder, {}, {})


def test_services_tell_runs_of_two_sweeps_apart(tmp_path: Path) -> None:
    run = sweep_of(tmp_path, LR, overrides=("name=mine",)).runs[0]
    assert title_of(run.path) == "lr-1e-3"
    write_sweep(run.path.parent, {}, {})
    assert title_of(run.path) == "mine/lr-1e-3"


# ---- shared stages ---------------------------------------------------------------------------------------------------


def test_stages_are_shared_by_what_they_are_made_from(tmp_path: Path) -> None:
    """A key that only fine-tuning reads leaves everything before it shared; seq_length makes its own data."""
    sweep = sweep_of(tmp_path, "optim.config.lr=1e-3,4e-3", "data.seq_length=512,1024")
    made = {(path.name, stage): maker.path.name for (path, stage), maker in makers(sweep.runs).items()}
    first, second, third, fourth = (run.path.name for run in sweep.runs)
    assert (first, second) == ("lr-1e-3_seq_length-512", "lr-1e-3_seq_length-1024")
    assert made == {
        **{(name, stage): first for name in (second, third, fourth) for stage in ("model", "import")},
        **{(third, stage): first for stage in ("prepare", "pretrain")},
        **{(fourth, stage): second for stage in ("prepare", "pretrain")},
    }
    exports = sweep_of(tmp_path, "export.weights=bf16,mxfp4")
    assert {stage for _, stage in makers(exports.runs)} == {
        "model", "prepare", "import", "pretrain", "finetune", "evaluate",
    }  # fmt: skip


def test_a_linked_stage_is_current_by_its_own_folder_also_where_the_sweep_was_moved(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, LR, overrides=("name=mine",))
    write_sweep(sweep.folder, {}, {point.name: point.overrides for point in sweep.points})
    first, second = sweep.runs
    for run in sweep.runs:
        write_run(run)
    for (_, name), maker in makers(sweep.runs).items():
        share(second, stage_named(name), maker)
    assert linked(second) == {"model", "data", "renamed", "base", "pretrain"}
    assert not is_current(stage_named("prepare"), second), "it is not made yet"
    for name in ("model", "prepare", "import", "pretrain"):
        finish(first, name)
    finish(second, "finetune")
    sweep.folder.rename(tmp_path / "elsewhere")
    assert is_sweep(tmp_path / "elsewhere")
    opened = [RunFolder.open(path) for path in runs_of_sweep(tmp_path / "elsewhere")]
    assert [run.path.name for run in opened] == ["lr-1e-3", "lr-4e-3"]
    current = [{name for name in ("model", "prepare", "import", "pretrain", "finetune", "export")
                if is_current(stage_named(name), run)} for run in opened]  # fmt: skip
    shared = {"model", "prepare", "import", "pretrain"}
    assert current == [shared, shared | {"finetune"}]
    assert (opened[1].renamed / "made").read_text() == "by lr-1e-3"


def test_a_larger_sweep_of_that_name_takes_what_is_there(tmp_path: Path) -> None:
    small = sweep_of(tmp_path, "peft.dim=8,16", overrides=("name=mine",))
    write_sweep(small.folder, {}, {point.name: point.overrides for point in small.points})
    for run in small.runs:
        write_run(run)
    for name in ("model", "prepare", "import", "pretrain"):
        finish(small.runs[0], name)
    large = sweep_of(tmp_path, "peft.dim=4,8,16", overrides=("name=mine",))
    other = sweep_of(tmp_path, "peft.dim=32,64", overrides=("name=mine",))
    for sweep in (large, other):
        plan = SweepPlan(sweep, Profile(), Selection())
        assert {maker.path.name for maker in plan.makers.values()} == {"dim-8"}
        tail = ["finetune", "evaluate", "export"]
        assert [[stage.name for stage in each.todo] for each in plan.plans] == [tail] * len(sweep.runs)
    write_sweep(large.folder, {}, {point.name: point.overrides for point in large.points[:1]})
    assert [path.name for path in runs_of_sweep(large.folder)] == ["dim-8", "dim-16"], "dim-4 has no folder yet"


def test_what_a_run_made_itself_stays_its_own(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, LR, overrides=("name=mine",))
    for run in sweep.runs:
        finish(run, "prepare")
    assert ("lr-4e-3", "prepare") not in {(path.name, name) for path, name in makers(sweep.runs)}


# ---- dry run, checks -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("store")
def test_a_dry_run_shows_the_points_and_what_each_would_run(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "peft.dim=4,8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        show_sweep(SweepPlan(sweep, Profile(), Selection()))
    assert "\n=== 1 of 2: peft.dim=4 ===\n" in printed.getvalue()
    told = printed.getvalue().partition("2 of 2: peft.dim=8")[2]
    assert re.findall(r"^(\w+): made by dim-4$", told, re.M) == ["model", "prepare", "import", "pretrain"]
    assert re.findall(r"^(\w+): (?:python|torchrun) .*/dim-8 \w+$", told, re.M) == ["finetune", "evaluate", "export"]
    assert not (tmp_path / "runs").exists()


def slurm(**more: str) -> Profile:
    return load_profile(None, ["cluster.executor=slurm", *(f"cluster.{key}={value}" for key, value in more.items())])


def test_jobs_wait_for_shared_stages_and_for_room(tmp_path: Path) -> None:
    plan = SweepPlan(sweep_of(tmp_path, "peft.dim=2,4,8,16"), slurm(), Selection(), parallel=2)
    queue, waits = Queue(plan), []
    for each in plan.plans:
        waits.append(dict(queue.placed(each).waits))
        queue.add(each, {stage.name: f"<{each.run.path.name}.{stage.name}>" for stage in each.todo})
    reads = "afterok:<dim-2.prepare>:<dim-2.import>:<dim-2.pretrain>"
    stages = ("model", "prepare", "import", "pretrain", "finetune", "evaluate", "export")
    whole = "afterany:" + ":".join(f"<dim-2.{name}>" for name in stages)
    assert waits[0] == {}
    assert waits[1] == {"finetune": reads, "evaluate": "afterok:<dim-2.prepare>"}
    assert waits[2] == {"finetune": f"{reads},{whole}", "evaluate": "afterok:<dim-2.prepare>"}
    later = "afterany:<dim-4.finetune>:<dim-4.evaluate>:<dim-4.export>"
    assert waits[3] == {"finetune": f"{reads},{later}", "evaluate": "afterok:<dim-2.prepare>"}


@pytest.mark.usefixtures("store")
def test_the_scripts_of_slurm_say_what_they_wait_for(tmp_path: Path) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        show_sweep(SweepPlan(sweep_of(tmp_path, "peft.dim=4,8"), slurm(), Selection()))
    told = printed.getvalue().partition("2 of 2: peft.dim=8")[2]
    scripts = dict(zip(*[iter(re.split(r"# --- (\w+) ---\n", told)[1:])] * 2, strict=True))
    assert list(scripts) == ["finetune", "evaluate", "export"]
    assert "#SBATCH --dependency='afterok:<dim-4.prepare>:<dim-4.import>:<dim-4.pretrain>'\n" in scripts["finetune"]
    assert "--dependency=afterok:<dim-4.prepare>,afterok:<finetune> " in scripts["evaluate"]
    assert "--dependency=afterok:<finetune>:<evaluate> " in scripts["export"]
    assert all("#SBATCH --kill-on-invalid-dep=yes" in script for script in scripts.values())


@pytest.mark.usefixtures("store")
def test_checks_are_made_once_and_name_the_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_free", lambda path, tunnel: 5 * 10**9)
    overrides = ("name=mine", "data.source=/nowhere/tickets.csv")
    sweep = sweep_of(tmp_path, "peft.dim=2,4,8,16,32,64", overrides=overrides)
    begun = sweep.runs[1].finetune / "checkpoints" / "step=1-last"
    begun.mkdir(parents=True)
    with pytest.raises(LaunchError) as error:
        launch_sweep(SweepPlan(sweep, Profile(), Selection()), {})
    text = str(error.value)
    assert text.startswith("3 things stand in the way:")
    assert text.count("/nowhere/tickets.csv, which the recipe names, does not exist") == 1
    assert f"  - dim-4: {sweep.runs[1].finetune} holds checkpoints of other settings" in text
    assert f"{sweep.folder} needs about 6 GB and 5 GB are free" in text
    assert not is_sweep(sweep.folder)


def test_where_folders_cannot_be_shared(tmp_path: Path) -> None:
    profile = load_profile(None, ["cluster.executor=skypilot"])
    with pytest.raises(ConfigurationError, match="the runs of a sweep share folders"):
        launch_sweep(SweepPlan(sweep_of(tmp_path, "peft.dim=4,8"), profile, Selection()), {})


@pytest.mark.usefixtures("store")
def test_the_status_of_a_sweep_has_a_line_a_run(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "peft.dim=4,8,16", overrides=("name=mine",))
    write_sweep(sweep.folder, {}, {point.name: point.overrides for point in sweep.points})
    for run in sweep.runs:
        write_run(run)
        for (path, name), maker in makers(sweep.runs).items():
            if path == run.path:
                share(run, stage_named(name), maker)
    for name in ("model", "prepare", "import", "pretrain", "finetune", "evaluate"):
        finish(sweep.runs[0], name)
    finish(sweep.runs[1], "finetune")

    def rows() -> list[tuple[str, str, str]]:
        return [(row.stage, row.state, row.note) for row in run_status.of_sweep(sweep.folder)]

    later = [("dim-8", "not started", "evaluate"), ("dim-16", "not started", "finetune")]
    assert rows() == [("dim-4", "not started", "export"), *later]
    write_sweep(sweep.folder, {"until": "evaluate"}, {})
    assert rows() == [("dim-4", "done", "made by dim-4"), *later]
    noted = json.loads((sweep.runs[1].path / "stages" / "prepare.json").read_text())
    assert noted["details"]["made"] == "made by dim-4"
