"""sbatch scripts for people who submit by hand: a folder that needs no NeMo-Run on the login node."""

from __future__ import annotations

import shutil
from pathlib import Path

from common import artifacts
from common.errors import LaunchError
from common.repository import REPOSITORY
from launch.dryrun import texts_of
from launch.executors.code_packager import code_files
from launch.launch_plan import LaunchPlan
from launch.store import home, next_id
from pipeline.run_folder import RunFolder
from recipes.schema.recipe import dump_recipe

HERE = "$SLURM_SUBMIT_DIR"  # submit.sh submits from its own folder
SUBMIT = """\
#!/bin/bash
# Submits the stages of {name}, each after those whose output it reads. Logs come into logs/ beside this file,
# outputs into {run}.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p logs {run}
cp recipe.yaml {run}/recipe.yaml
submit() {{ sbatch --requeue --parsable "$@"; }}
{lines}
"""


def export(plan: LaunchPlan, out: Path) -> None:
    """Write `OUT/submit.sh`, a script for each stage, the code and the recipe.

    Raises:
        LaunchError: the executor is not Slurm, or nothing is to be done.
        NemoRunError: OUT holds something that this package did not write.
    """
    run = plan.run
    if plan.profile.executor != "slurm":
        raise LaunchError(
            f"--export-script writes sbatch scripts, and the executor is {plan.profile.executor}: "
            "name a profile of Slurm with --cluster."
        )
    if not plan.todo:
        raise LaunchError("every stage is current: there is nothing to export.")
    with artifacts.new_folder(out) as folder:
        lines = []
        for index, (stage, (name, text)) in enumerate(zip(plan.todo, texts_of(plan), strict=True)):
            script = f"{index + 1}-{name}.sbatch"
            (folder / script).write_text(_own_paths(text[text.index("#!") :], run, name))
            after = plan.dependencies(stage)
            waits = (
                "--dependency=afterok:" + ":".join(f"${_variable(before)}" for before in after) + " " if after else ""
            )
            lines.append(f'{_variable(name)}=$(submit {waits}{script}); echo "{name}: job ${_variable(name)}"')
        (folder / "submit.sh").write_text(SUBMIT.format(name=run.path.name, run=run.path, lines="\n".join(lines)))
        (folder / "submit.sh").chmod(0o755)
        (folder / "recipe.yaml").write_text(dump_recipe(run.recipe))
        for file in code_files():
            target = folder / "code" / file.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        artifacts.write_manifest(folder, "sbatch-scripts", {"run": str(run.path), "recipe": run.tree})
    print(f"wrote {out}: copy it to the cluster and run {out / 'submit.sh'} there")


def _own_paths(script: str, run: RunFolder, stage: str) -> str:
    """NeMo-Run's script with the folder it lies in for NeMo-Run's experiment folder."""
    jobs = f"{home()}/{run.path.name}/{next_id(run.path.name)}/{stage}"
    lines = []
    for line in script.splitlines():
        if line.startswith("#SBATCH"):  # no variables there, but relative paths start where sbatch was called
            line = line.replace(jobs, "logs")
        elif line.startswith("# Run with:"):
            line = "# Run with: submit.sh"
        else:
            line = line.replace(f"--output {jobs}/", f"--output {HERE}/logs/").replace(jobs, HERE)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _variable(stage: str) -> str:
    return f"job_{stage.replace('-', '_')}"
