"""`nemo-run convert`: checkpoints between Hugging Face, NeMo and Megatron-Bridge, and proof that nothing changed."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from common.errors import ConfigurationError
from common.progress import bars
from common.values import bytes_of


class Experts(StrEnum):
    """How an import stores the experts."""

    bf16 = "bf16"
    mxfp4 = "mxfp4"


class Megatron(StrEnum):
    """Whose checkpoint an import writes."""

    nemo = "nemo"
    bridge = "bridge"


class Target(StrEnum):
    """What an export writes."""

    hf = "hf"
    nemo = "nemo"
    bridge = "bridge"


class AdapterTarget(StrEnum):
    """As what an adapter is written."""

    peft = "peft"
    nemo = "nemo"
    bridge = "bridge"


class Layout(StrEnum):
    """`converters.peft.expert_layouts.ExpertLayout`, whose module takes torch: the command line answers without."""

    transformers5 = "transformers5"
    transformers4 = "transformers4"


app = typer.Typer(
    help="Move gpt-oss checkpoints between Hugging Face, NeMo and Megatron-Bridge, without a GPU.", no_args_is_help=True
)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(metavar="HF|MEGATRON", help="Hub id, Hugging Face folder, or checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Checkpoint to write.")],
    experts: Annotated[
        Experts, typer.Option(help="mxfp4 keeps them as they are, a third of the size: for LoRA with this package.")
    ] = Experts.bf16,
    to: Annotated[Megatron, typer.Option(help="bridge: for Megatron-Bridge.")] = Megatron.nemo,
) -> None:
    """Hugging Face (MXFP4 or plain), NeMo or Megatron-Bridge → NeMo, or Megatron-Bridge with --to bridge.

    Example: nemo-run convert import openai/gpt-oss-20b models/gpt-oss-20b
    """
    from converters.import_hf import import_checkpoint
    from converters.nemo_folder import is_megatron
    from converters.rewrite import rewrite_checkpoint

    started = time.perf_counter()
    carried = is_megatron(Path(source))
    if carried and experts == Experts.mxfp4:
        raise ConfigurationError(
            f"{source} is no Hugging Face folder, from which alone experts can stay MXFP4: leave out --experts."
        )
    with bars("bytes") as progress:
        if carried:
            rewrite_checkpoint(Path(source), out, to=to.value, progress=progress)
        else:
            import_checkpoint(source, out, progress, experts=experts.value, to=to.value)
    _wrote(out, started)


@app.command("export")
def export(
    source: Annotated[Path, typer.Argument(metavar="MEGATRON|RUN", help="Checkpoint of either, or a run folder.")],
    out: Annotated[Path, typer.Argument(help="Hugging Face folder to write; with --to, checkpoint.")],
    adapter: Annotated[Path | None, typer.Option(help="Adapter checkpoint to merge.")] = None,
    like: Annotated[Path | None, typer.Option(help="Our import of the base, for config.json and tokenizer.")] = None,
    weights: Annotated[str, typer.Option(help="bf16, fp32, mxfp4, or auto: as the checkpoint has them.")] = "auto",
    shard_size: Annotated[str, typer.Option(help="Largest size of one safetensors file.")] = "5GB",
    to: Annotated[Target, typer.Option(help="bridge, nemo: a whole checkpoint for that instead.")] = Target.hf,
    push_to: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Upload it to the Hub, private.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the Hub repository public.")] = False,
) -> None:
    """NeMo or Megatron-Bridge → Hugging Face; of a run, its tuned model with the adapter merged.

    Example: nemo-run convert export runs/tickets exported --weights mxfp4
    """
    from common.artifacts import read_manifest
    from converters import hub
    from converters.export_hf import export_checkpoint
    from converters.rewrite import rewrite_checkpoint
    from pipeline.run_folder import is_run

    started = time.perf_counter()
    usage, title = "", source.resolve().name
    if push_to and to != Target.hf:
        raise ConfigurationError("--push-to uploads Hugging Face folders: leave --to out.")
    if is_run(source):
        from pipeline.checkpoints import exported_parts
        from serving.usage import usage_of

        usage, tuned = usage_of(source / "data"), exported_parts(source)
        source, adapter, like = tuned.weights, tuned.adapter, tuned.like
    # before the work, so that a missing permission shows at once
    address = hub.create(push_to, public=public) if push_to else None
    if to != Target.hf:
        with bars("bytes") as progress:
            rewrite_checkpoint(source, out, to=to.value, adapter=adapter, weights=weights, like=like, progress=progress)
        _wrote(out, started)
        return
    with bars("bytes") as progress:
        export_checkpoint(
            source,
            out,
            adapter=adapter,
            weights=weights,
            shard_size=shard_size,
            like=like,
            title=title,
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
    source: Annotated[
        Path, typer.Argument(metavar="MEGATRON|RUN|PEFT", help="Adapter checkpoint, run, or PEFT folder.")
    ],
    out: Annotated[Path, typer.Argument(help="PEFT folder, or adapter checkpoint, to write.")],
    base: Annotated[
        Path | None, typer.Option(help="Our import of the base; an adapter checkpoint knows what it was trained on.")
    ] = None,
    to: Annotated[
        AdapterTarget | None, typer.Option(help="By default peft, or nemo where the source is a PEFT folder.")
    ] = None,
    layout: Annotated[
        Layout | None,
        typer.Option(
            help="Experts' layout: transformers5 (the default) for PEFT with transformers 5, PEFT 0.17 and vLLM; "
            "transformers4 for newer PEFT with transformers 4.57. To read a PEFT folder, only where it does not tell."
        ),
    ] = None,
) -> None:
    """Adapter of NeMo or Megatron-Bridge → Hugging Face PEFT folder, or back, or one → the other with --to.

    Example: nemo-run convert adapter runs/tickets peft-adapter
    """
    from common.artifacts import read_manifest
    from converters.bridge_adapter import ensure_expressible, rewrite_adapter
    from converters.peft.expert_layouts import NOTE, ExpertLayout
    from converters.peft.export_peft import export_adapter
    from converters.peft.import_peft import import_adapter, is_peft
    from pipeline.run_folder import is_run

    started = time.perf_counter()
    of_experts = ExpertLayout(layout) if layout else None
    if is_peft(source):
        if to == AdapterTarget.peft:
            raise ConfigurationError(f"{source} is a PEFT folder already: choose --to nemo or --to bridge.")
        if base is None:
            raise ConfigurationError("--base is missing: name the import of the model that this adapter belongs to.")
        if to == AdapterTarget.bridge:
            with TemporaryDirectory(prefix=f".{out.name}-", dir=out.absolute().parent) as folder:
                read = import_adapter(source, Path(folder) / "adapter", base=base, layout=of_experts)
                rewrite_adapter(read, out, to="bridge", base=base)
        else:
            import_adapter(source, out, base=base, layout=of_experts)
        done = "read"
    else:
        title = source.resolve().name
        if is_run(source):
            from pipeline.checkpoints import exported_parts

            tuned = exported_parts(source)
            if tuned.adapter is None:
                raise ConfigurationError(f"{source} trained the whole model, without an adapter: use convert export.")
            source, base = tuned.adapter, base or tuned.like
        if to in (None, AdapterTarget.peft):
            ensure_expressible(source, base)
            export_adapter(source, out, base=base, layout=of_experts or ExpertLayout.transformers5, title=title)
        else:
            rewrite_adapter(source, out, to=to.value, base=base)
        done = "written"
    _wrote(out, started)
    manifest = read_manifest(out)
    if manifest and (of_experts := manifest.details.get(NOTE)):
        print(f"experts {done} in the layout of {of_experts}: {ExpertLayout(of_experts).words}")


@app.command("verify")
def verify(
    a: Annotated[Path, typer.Argument(help="Hugging Face folder, or checkpoint of NeMo or Megatron-Bridge.")],
    b: Annotated[Path, typer.Argument(help="The other one.")],
) -> None:
    """Compare two checkpoints in every value; exit status 1 where they differ.

    Example: nemo-run convert verify openai/gpt-oss-20b models/gpt-oss-20b
    """
    from converters.verify import compare_checkpoints

    started = time.perf_counter()
    with bars() as progress:
        report = compare_checkpoints(a, b, progress)
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


def _wrote(folder: Path, started: float) -> None:
    seconds, size = time.perf_counter() - started, bytes_of(folder) / 1e9
    print(f"wrote {folder}: {size:.3f} GB in {seconds:.1f} s ({size / seconds:.2f} GB/s)")
