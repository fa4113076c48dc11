"""Wheels for machines without a network: their parts, what is left out, what the script refuses; and all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from containers import bundle
from tests.conftest import REPOSITORY, run_to_its_end

MISSING = "set TEST_BUNDLE=1: it fetches some 180 wheels, and takes minutes"


def wheels(folder: Path, **megabytes: int) -> None:
    for name, size in megabytes.items():
        with (folder / f"{name}.whl").open("wb") as file:
            file.truncate(size * 10**6)


def test_parts_hold_at_most_60_mb(tmp_path: Path) -> None:
    wheels(tmp_path, a=50, b=40, c=15, d=10, e=1)
    names = [sorted(wheel.stem for wheel in part) for part in bundle.split(tmp_path)]
    assert names == [["a", "d"], ["b", "c", "e"]]


def test_a_wheel_that_fits_no_part_is_refused(tmp_path: Path) -> None:
    wheels(tmp_path, large=61)
    with pytest.raises(SystemExit, match=r"large\.whl is larger than a part of 60 MB"):
        bundle.split(tmp_path)


def test_what_the_machine_has_is_left_out(tmp_path: Path) -> None:
    """Torch and what it requires always; others where the very version is there."""
    assert {"torch", "sympy", "networkx", "jinja2"} <= bundle.with_torch()
    assert "transformers" not in bundle.with_torch()
    installed = bundle._installed("transformers")
    (tmp_path / "freeze.txt").write_text(f"transformers=={installed}\nnumpy==2.5.2\nmine @ file:///x\n")
    assert bundle.there(tmp_path / "freeze.txt") == {"transformers"}


def test_the_script_refuses_another_python(tmp_path: Path) -> None:
    bundle._write_script(tmp_path / "install.sh", "3.7")
    ran = run_to_its_end([str(tmp_path / "install.sh"), str(tmp_path / "site")], timeout=30, env=_with(sys.executable))
    assert ran.status == 1
    assert "these wheels are for Python 3.7, and " in ran.err


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("TEST_BUNDLE"), reason=MISSING)
@pytest.mark.timeout(2400)
def test_a_machine_with_torch_alone_trains_by_the_bundle(tmp_path: Path) -> None:
    """An empty environment that sees torch: installed without an index, doctor says yes, the tiny recipe trains."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    out = tmp_path / "bundle"
    command = [sys.executable, str(REPOSITORY / "containers" / "bundle.py"), str(out), "--python", version]
    made = run_to_its_end(command, timeout=1500, cwd=tmp_path)
    assert made.status == 0, made.out[-1000:] + made.err[-3000:]
    for part in out.glob("part-*"):
        assert sum(file.stat().st_size for file in part.iterdir()) <= bundle.PART + 10_000

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "machine"], check=True, timeout=120)
    python = tmp_path / "machine" / "bin" / "python"
    show_torch(tmp_path / "torch", Path(sys.prefix) / "lib" / f"python{version}" / "site-packages")
    site = tmp_path / "machine" / "lib" / f"python{version}" / "site-packages"
    (site / "torch.pth").write_text(f"{tmp_path / 'torch'}\n")
    installed = run_to_its_end([str(out / "install.sh"), str(tmp_path / "site")], timeout=600, env=_with(python))
    assert installed.status == 0, installed.err

    environment = _with(python) | {"PYTHONPATH": f"{tmp_path / 'site'}:{REPOSITORY}"}
    run = [str(python), "-m", "launch.cli"]
    doctor = run_to_its_end([*run, "doctor", "--no-kernels"], timeout=200, cwd=tmp_path, env=environment)
    assert doctor.status == 0, doctor.out + doctor.err
    assert "missing" not in doctor.out
    recipe = [str(REPOSITORY / "recipes" / "gpt_oss_tiny_lora.py"), *bundle.RECIPE, "--until", "finetune"]
    trained = run_to_its_end([*run, "launch", *recipe], timeout=500, cwd=tmp_path, env=environment)
    assert trained.status == 0, trained.out[-2000:] + trained.err[-2000:]
    assert "finetune: adapter, loss" in trained.out


def show_torch(folder: Path, site: Path) -> None:
    """A folder through which another environment sees this one's torch, with what torch requires, and nothing else."""
    from importlib.metadata import PackageNotFoundError, distribution

    folder.mkdir()
    for name in bundle.with_torch():
        try:
            files = distribution(name).files or []
        except PackageNotFoundError:
            continue
        for top in {Path(str(file)).parts[0] for file in files} - {"..", "__pycache__"}:
            if (site / top).exists() and not (folder / top).exists():
                (folder / top).symlink_to(site / top)


def _with(python: Path | str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {"PYTHON": str(python)}
