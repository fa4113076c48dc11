"""`nemo-run convert`: checkpoints from Hugging Face to NeMo and back, and the proof that nothing changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from converters.progress import Done
from errors import ConfigurationError
from launch.bars import bar

app = typer.Typer(help="Move gpt-oss checkpoints between Hugging Face and NeMo, without a GPU.", no_args_is_help=True)


@app.command("import")
def import_(
    hf: Annotated[str, typer.Argument(help="Hub id, or folder: config.json, tokenizer, *.safetensors.")],
    nemo: Annotated[Path, typer.Argument(help="NeMo checkpoint to write.")],
) -> None:
    """Hugging Face (MXFP4 or plain) → NeMo.

    Example: nemo-run convert import models/gpt-oss-20b-hf models/gpt-oss-20b
    """
    from converters.import_hf import import_checkpoint

    started = time.perf_counter()
    with _bytes_bar("import") as progress:
        import_checkpoint(hf, nemo, progress)
    _wrote(nemo, started)


@app.command("export")
def export(
    source: Annotated[Path, typer.Argument(metavar="NEMO|RUN", help="NeMo checkpoint, or a run folder.")],
    out: Annotated[Path, typer.Argument(help="Hugging Face folder to write.")],
    adapter: Annotated[Path | None, typer.Option(help="Adapter checkpoint to merge.")] = None,
    like: Annotated[Path | None, typer.Option(help="Our import of the base, for config.json and tokenizer.")] = None,
    weights: Annotated[str, typer.Option(help="bf16, fp32, mxfp4, or auto: as the checkpoint has them.")] = "auto",
    shard_size: Annotated[str, typer.Option(help="Largest size of one safetensors file.")] = "5GB",
    push_to: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Upload it to the Hub, private.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the Hub repository public.")] = False,
) -> None:
    """NeMo → Hugging Face; of a run, its tuned model with the adapter merged.

    Example: nemo-run convert export runs/gpt_oss_20b_lora exported/ --weights mxfp4
    """
    from artifacts import read_manifest
    from converters import hub
    from converters.export_hf import export_checkpoint

    started = time.perf_counter()
    usage = ""
    if _is_run(source):
        from recipes.checkpoints import exported_parts
        from recipes.serving import usage_of

        usage = usage_of(source / "data")
        source, adapter, like = exported_parts(source)
    # before the work, so that a missing permission is told at once
    address = hub.create(push_to, public=public) if push_to else None
    with _bytes_bar("export") as progress:
        export_checkpoint(
            source,
            out,
            adapter=adapter,
            weights=weights,
            shard_size=shard_size,
            like=like,
            usage=usage,
            progress=progress,
        )
    _wrote(out, started)
    manifest = read_manifest(out)
    if manifest and "kept" in manifest.details:
        errors = manifest.details["relative_errors"]
        print(f"{manifest.details['kept']} expert matrices kept their MXFP4 bytes")
        for name, error in errors.items():
            print(f"quantized {name}: error {error:.4f} of the values (RMS)")
    if push_to:
        hub.upload(out, push_to)
        print(f"uploaded to {address}")


@app.command("adapter")
def adapter(
    source: Annotated[Path, typer.Argument(metavar="NEMO|RUN|PEFT", help="Adapter checkpoint, run, or PEFT folder.")],
    out: Annotated[Path, typer.Argument(help="PEFT folder, or from one the adapter checkpoint, to write.")],
    base: Annotated[
        Path | None, typer.Option(help="Our import of the base; an adapter checkpoint knows what it was trained on.")
    ] = None,
) -> None:
    """NeMo adapter → Hugging Face PEFT folder, or back, by what the first argument is.

    Example: nemo-run convert adapter runs/gpt_oss_20b_lora peft-adapter/
    """
    from converters.peft import export_adapter, import_adapter, is_peft

    started = time.perf_counter()
    if is_peft(source):
        if base is None:
            raise ConfigurationError("--base is missing: name the import of the model that this adapter belongs to.")
        import_adapter(source, out, base=base)
    else:
        if _is_run(source):
            from recipes.checkpoints import exported_parts

            _, tuned, base = exported_parts(source)
            if tuned is None:
                raise ConfigurationError(f"{source} trained the whole model, without an adapter: use convert export.")
            source = tuned
        export_adapter(source, out, base=base)
    _wrote(out, started)


@app.command("verify")
def verify(
    a: Annotated[Path, typer.Argument(help="Hugging Face folder or NeMo checkpoint.")],
    b: Annotated[Path, typer.Argument(help="The other one.")],
) -> None:
    """Compare two checkpoints in every value; exit status 1 where they differ.

    Example: nemo-run convert verify models/gpt-oss-20b-hf models/gpt-oss-20b
    """
    from converters.verify import verify as compare

    started = time.perf_counter()
    with bar("verify") as progress:
        report = compare(a, b, progress)
    seconds = time.perf_counter() - started
    print(f"{report.equal} tensors equal, {len(report.different)} different, {seconds:.1f} s")
    if report.different:
        name, difference = report.largest
        print(f"largest difference {difference:.3e} in {name}")
    if report.dtypes:
        name, dtypes = next(iter(report.dtypes.items()))
        print(f"{len(report.dtypes)} tensors in different dtypes, such as {name}: {dtypes}")
    if not report.same:
        raise typer.Exit(1)


def _is_run(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file()


@contextmanager
def _bytes_bar(title: str) -> Iterator[Callable[[Done], None]]:
    """A bar in bytes with tensors, speed and time left, on stderr; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[tensors]}"),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None, tensors="")

        def update(done: Done) -> None:
            tensors = f"{done.tensors}/{done.all_tensors} tensors"
            progress.update(task, completed=done.bytes, total=done.all_bytes, tensors=tensors)

        yield update


def _wrote(folder: Path, started: float) -> None:
    seconds = time.perf_counter() - started
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"wrote {folder}: {size / 1e9:.3f} GB in {seconds:.1f} s ({size / 1e9 / seconds:.2f} GB/s)")
