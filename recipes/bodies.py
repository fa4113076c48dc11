"""What each stage does, in terms of the other packages. Imports are inside: a stage loads only what it needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import artifacts
from errors import DataError, LaunchError
from recipes.checkpoints import best_checkpoint, exported_parts, last_checkpoint, start_of, step_of, validation_loss
from recipes.config import Deferred
from recipes.console import rank
from recipes.pipeline import RunFolder

Details = dict[str, Any]
END, PAD = "<|return|>", "<|endoftext|>"


def make_model(run: RunFolder) -> Details:
    """Write the rehearsal's random gpt-oss, MXFP4 like the real one, with a tokenizer trained on the sample."""
    from tokenizers import Tokenizer

    from data_prep.harmony import CHAT_TEMPLATE, SPECIAL_TOKENS
    from data_prep.sample import sample_texts
    from modeling.toy_checkpoint import write_toy_checkpoint
    from modeling.toy_tokenizer import train_tokenizer

    toy = run.recipe.model.toy
    if toy is None:
        raise LaunchError("this recipe has no toy model: the stage `model` belongs to the rehearsal.")
    sizes = {name: value for name, value in vars(toy).items() if name != "seed"}
    with artifacts.new_folder(Path(run.hf)) as folder:
        train_tokenizer(
            sample_texts(),
            folder,
            vocab_size=toy.vocab_size,
            chat_template=CHAT_TEMPLATE,
            special_tokens=SPECIAL_TOKENS,
        )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = {"eos_token_id": tokenizer.token_to_id(END), "pad_token_id": tokenizer.token_to_id(PAD)}
        write_toy_checkpoint(folder, config=sizes | ids, seed=toy.seed, weights="mxfp4")
        artifacts.write_manifest(folder, "toy-model", {"toy": vars(toy)})
    return {"made": f"random gpt-oss as MXFP4, {_size(Path(run.hf))}"}


def prepare(run: RunFolder) -> Details:
    """Tickets → cleaned, split and rendered JSONL."""
    from data_prep.prepare import prepare as prepare_tickets

    data = run.recipe.data
    options = replace(
        data.prepare,
        tokenizer=str(run.hf),
        max_length=data.prepare.max_length or data.seq_length,
        pack=data.seq_length if data.packed else data.prepare.pack,
    )
    report = prepare_tickets(data.source, run.data, options)
    _check_lengths(run, max((int(split.get("longest", 0)) for split in report.lengths.values()), default=0))
    return {"made": report.summary()}


def import_base(run: RunFolder) -> Details:
    """Hugging Face checkpoint → NeMo checkpoint."""
    from converters.import_hf import import_checkpoint

    import_checkpoint(run.hf, run.base)
    return {"made": f"NeMo checkpoint, {_size(run.base)}"}


def pretrain(run: RunFolder) -> Details:
    """Train the random base in full on the training tickets: it knows no language yet, and LoRA needs one that does."""
    settings = run.recipe.pretraining
    if settings is None:
        raise LaunchError("this recipe has no pretraining: the stage `pretrain` belongs to the rehearsal.")
    recipe = run.recipe
    optimizer = recipe.optim.arguments["config"]
    optim = recipe.optim.arguments | {
        "config": Deferred(optimizer.target, {**optimizer.arguments, "lr": settings.lr}),
    }
    batches = replace(
        recipe.data, micro_batch_size=settings.micro_batch_size, global_batch_size=settings.global_batch_size
    )
    tuned = replace(
        recipe,
        data=batches,
        optim=Deferred(recipe.optim.target, optim),
        trainer=Deferred(recipe.trainer.target, {**recipe.trainer.arguments, "max_steps": settings.max_steps}),
        peft=None,
        patience=0,
    )
    _train(replace(run, recipe=tuned), "pretrain", start=run.base, dataset=run.data, out=run.pretrain)
    loss = _last_loss(run.pretrain)
    return {
        "made": f"random base trained in full on the training tickets, loss {loss:.3f}",
        "checkpoint": str(last_checkpoint(run.pretrain)),
    }


def finetune(run: RunFolder) -> Details:
    """Fine-tune with NeMo's `llm.finetune`: LoRA where the recipe has `peft`, else all parameters."""
    _train(run, "finetune", start=start_of(run), dataset=run.data, out=run.finetune)
    what = "adapter" if run.recipe.peft else "model, all weights"
    made = f"{what}, loss {_last_loss(run.finetune):.3f}"
    best = best_checkpoint(run.finetune)
    if (loss := validation_loss(best)) is not None:
        made += f"; validation loss {loss:.3f}, the lowest, at step {step_of(best)} of {_last_step(run.finetune)}"
    return {"made": made, "checkpoint": str(best)}


def evaluate(run: RunFolder) -> Details:
    """Base and tuned model on the test split, beside the baselines; of conversations there is nothing to count."""
    if not _labels(run):
        if rank() == 0:
            with artifacts.new_folder(run.evaluation) as folder:
                artifacts.write_manifest(folder, "evaluation", {"data": str(run.data)})
        return {
            "made": "nothing: conversations have no labels to score; their validation loss is in the finetune stage"
        }
    from recipes.comparison import compare

    return compare(run)


def export(run: RunFolder) -> Details:
    """Adapter merged, full weights as safetensors; its logits against those of the model in training."""
    from converters.export_hf import export_checkpoint
    from evaluation.parity import largest_difference
    from recipes.serving import usage_of

    base, adapter, like = exported_parts(run.path)
    settings = run.recipe.export
    export_checkpoint(
        base,
        run.exported,
        adapter=adapter,
        weights=settings.weights,
        shard_size=settings.shard_size,
        like=like,
        usage=usage_of(run.data),
    )
    made, logits = f"safetensors, {_size(run.exported)}", run.evaluation / "logits.safetensors"
    if not logits.is_file():
        return {"made": f"{made}; not compared with the model in training, which was not evaluated"}
    difference = largest_difference(run.exported, logits)
    return {
        "made": f"{made}; largest logit difference to training {difference:.1e}",
        "largest_logit_difference": difference,
    }


BODIES: dict[str, Callable[[RunFolder], Details]] = {
    "model": make_model,
    "prepare": prepare,
    "import": import_base,
    "pretrain": pretrain,
    "finetune": finetune,
    "evaluate": evaluate,
    "export": export,
}


def _check_lengths(run: RunFolder, longest: int) -> None:
    """Refuse a folder that was prepared before, for shorter sequences: NeMo would cut its prompts without a word."""
    from data_prep.nemo_dataset import packed_sequence_arguments

    data, size = run.recipe.data, run.recipe.data.seq_length
    if longest > size:
        raise DataError(
            f"{data.source} holds tickets of {longest} tokens: set data.seq_length={longest}, "
            f"or prepare it with --max-length {size}."
        )
    packed = Path(packed_sequence_arguments(run.data, size)["packed_train_data_path"])
    if data.packed and not packed.is_file():
        raise DataError(
            f"{data.source} holds no sequences packed to {size} tokens: prepare it with --pack {size}, "
            "or set data.packed=false."
        )


def _labels(run: RunFolder) -> list[Any]:
    """The labels of the prepared tickets; none where the data are conversations."""
    return json.loads((run.data / "labels.json").read_text(encoding="utf-8"))["labels"]


def _train(run: RunFolder, title: str, *, start: Path, dataset: Path, out: Path) -> None:
    from data_prep.nemo_dataset import NEMO_DATASET_KWARGS
    from recipes.training import Training

    context = run.base / "context"
    Training(
        title=title,
        start=start,
        hf_config=context / "hf_config.json",
        tokenizer=context / "nemo_tokenizer",
        dataset=dataset,
        dataset_arguments=NEMO_DATASET_KWARGS,
        out=out,
        recipe=run.recipe,
    ).run()


def _last_loss(folder: Path) -> float:
    """Mean loss of the last ten steps."""
    losses = [row["loss"] for row in _history(folder) if row.get("loss") is not None][-10:]
    return sum(losses) / len(losses)


def _last_step(folder: Path) -> int:
    return _history(folder)[-1]["step"]


def _history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def _size(folder: Path) -> str:
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{total / 1e9:.1f} GB" if total >= 1e9 else f"{total / 1e6:.1f} MB"
