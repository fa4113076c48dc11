"""Wheels for GPU machines without a network: `python containers/bundle.py OUT [--python 3.12] [--have FREEZE.txt]`.

Such a machine has torch. What training loads besides it is found by training: the stages of the tiny recipe run here,
and the distributions that they imported are collected at the versions that are installed here: as wheels for Linux and
the given Python, in parts of at most 60 MB, with `install.sh`, which puts them into one folder beside the machine's own
torch. A package without a wheel is built here, which must give one of pure Python.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PART = 60 * 10**6
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (39, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
# What these load is on the machine, or does not run there: torch brings the libraries of its own CUDA.
KEPT = ("torch", "triton", "pip", "setuptools", "gpt-oss-nemo-recipes", "transformer-engine", "pytorch-triton")
STAGES = ("model", "prepare", "import", "pretrain", "finetune", "evaluate", "export")
RECIPE = (
    "trainer.max_steps=2",
    "pretraining.max_steps=2",
    "trainer.devices=1",
    "trainer.strategy.expert_model_parallel_size=1",
    "evaluation.max_tickets=4",
)


def loaded() -> list[str]:
    """Distributions that the stages of the tiny recipe import, each stage in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        names: set[str] = set()
        for stage in STAGES:
            command = [sys.executable, __file__, "--record", stage, folder]
            done = subprocess.run(
                command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            if done.returncode:
                sys.exit(f"stage {stage} of the tiny recipe failed:\n{done.stdout.decode(errors='replace')[-3000:]}")
            names |= set(json.loads((Path(folder) / f"{stage}.json").read_text()))
    return sorted(name for name in names if _installed(name))  # setuptools has packages inside that nobody can fetch


def record_stage(name: str, folder: Path) -> None:
    """Run a stage of the tiny recipe in this process, and note which distributions it has imported then."""
    from pkgutil import resolve_name

    from common.repository import PACKAGES
    from launch import dryrun, experiment, preflight, start  # noqa: F401  (what a launch on that machine loads)
    from pipeline.loading import make_run, write_run
    from pipeline.stage import record, stage_named
    from stages.__main__ import BODIES

    run = make_run(ROOT / "recipes" / "gpt_oss_tiny_lora.py", [*RECIPE, "name=tiny"], folder)
    write_run(run)
    record(stage_named(name), run, resolve_name(BODIES[name])(run))
    tops = {module.partition(".")[0] for module in sys.modules} - set(PACKAGES)
    owners = packages_distributions()
    names = {canonicalize_name(owner) for top in tops for owner in owners.get(top, ()) if _installed(owner)}
    (folder / f"{name}.json").write_text(json.dumps(sorted(names)))
    sys.stdout.flush()
    os._exit(0)  # NeMo's threads would hold the interpreter


def with_torch() -> set[str]:
    """torch and what it requires, which a machine with torch has."""
    names: set[str] = set(KEPT)
    todo: list[str] = ["torch"]
    while todo:
        try:
            requires = distribution(todo.pop()).requires or []
        except PackageNotFoundError:
            continue
        needed = [Requirement(text) for text in requires]
        more = {
            canonicalize_name(each.name)
            for each in needed
            if each.marker is None or each.marker.evaluate({"extra": ""})
        }
        todo += more - names
        names |= more
    return names


def there(freeze: Path | None) -> set[str]:
    """Packages that the machine has at the very versions that are installed here, by its `pip freeze`."""
    lines = freeze.read_text().splitlines() if freeze else []
    pairs = [line.partition("==") for line in lines if "==" in line]
    return {canonicalize_name(name) for name, _, version in pairs if _installed(name) == version.strip()}


def _installed(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


def fetch(name: str, python: str, folder: Path) -> None:
    """A wheel of the installed version of a distribution, for Linux and this Python.

    Raises:
        SystemExit: there is none, and none for every machine can be built.
    """
    wanted = f"{name}=={distribution(name).version}"
    target = ["--implementation", "cp", "--python-version", python, *(f"--platform={each}" for each in PLATFORMS)]
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check"]
    if subprocess.run([*pip, "download", "--no-deps", "--only-binary=:all:", *target, "-d", folder, wanted]).returncode:
        built = folder / "built"
        subprocess.run([*pip, "wheel", "--no-deps", "-w", built, wanted], check=True)
        (wheel,) = built.glob("*.whl")
        if not wheel.name.endswith("-none-any.whl"):
            sys.exit(f"{wanted} has no wheel for Python {python}, and what was built here runs here alone.")
        shutil.move(wheel, folder / wheel.name)


def split(folder: Path) -> list[list[Path]]:
    """The wheels in parts of at most `PART` bytes, the largest first, each into the first part that has room.

    Raises:
        SystemExit: one wheel is larger than a part.
    """
    parts: list[list[Path]] = []
    for wheel in sorted(folder.glob("*.whl"), key=lambda file: (-file.stat().st_size, file.name)):
        if wheel.stat().st_size > PART:
            sys.exit(f"{wheel.name} is larger than a part of {PART // 10**6} MB.")
        room = (part for part in parts if sum(file.stat().st_size for file in [*part, wheel]) <= PART)
        part = next(room, None)
        if part is None:
            parts.append([wheel])
        else:
            part.append(wheel)
    return parts


INSTALL = Path(__file__).parent / "install_bundle.sh"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write; it must not exist")
    parser.add_argument("--python", default="3.12", help="of the GPU machine")
    parser.add_argument("--have", type=Path, help="`pip freeze` of the GPU machine: what it has already is left out")
    parser.add_argument("--record", metavar="STAGE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.record:
        record_stage(options.record, options.out)
        return
    if options.out.exists():
        sys.exit(f"{options.out} exists: name another folder, or remove it.")
    started = time.perf_counter()
    print("running the tiny recipe's stages, to see what training loads", flush=True)
    names = loaded()
    wanted = [name for name in names if name not in with_torch() | there(options.have)]
    print(f"training loads {len(names)} packages; the machine lacks {len(wanted)} of them", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate(wanted, 1):
            print(f"{number}/{len(wanted)} {name}", flush=True)
            fetch(name, options.python, Path(scratch))
        partial = options.out.with_name(options.out.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        for number, part in enumerate(split(Path(scratch)), 1):
            (partial / f"part-{number}").mkdir(parents=True)
            for wheel in part:
                shutil.move(wheel, partial / f"part-{number}" / wheel.name)
            _write_script(partial / f"part-{number}" / "install.sh", options.python)
    _write_script(partial / "install.sh", options.python)
    partial.rename(options.out)
    parts = sorted(options.out.glob("part-*"))
    sizes = [sum(file.stat().st_size for file in part.iterdir()) / 1e6 for part in parts]
    listed, seconds = ", ".join(f"{size:.0f} MB" for size in sizes), time.perf_counter() - started
    print(f"wrote {options.out}: {len(wanted)} wheels in {len(parts)} parts ({listed}), {seconds:.0f} s")


def _write_script(file: Path, python: str) -> None:
    file.write_text(INSTALL.read_text().replace("@PYTHON@", python))
    file.chmod(0o755)


if __name__ == "__main__":
    main()
