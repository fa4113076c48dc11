"""The stage `model` of a rehearsal: a random gpt-oss in the form in which the real one is published."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from common import artifacts
from common.errors import LaunchError
from common.fields import to_tree
from common.values import size_of
from converters.toy_checkpoint import write_toy_checkpoint
from data_prep.harmony import CHAT_TEMPLATE, SPECIAL_TOKENS
from data_prep.tokenizer_corpus import tokenizer_texts
from data_prep.toy_tokenizer import train_tokenizer
from pipeline.run_folder import RunFolder
from pipeline.stage import Details

END, PAD = "<|return|>", "<|endoftext|>"


def make_model(run: RunFolder) -> Details:
    """Write the random gpt-oss, MXFP4 like the real one, with a tokenizer trained on the run's own tickets."""
    toy = run.recipe.model.toy
    if toy is None:
        raise LaunchError("this recipe has no toy model: the stage `model` belongs to the rehearsal.")
    sizes = {name: value for name, value in vars(toy).items() if name != "seed"}
    with artifacts.new_folder(Path(run.hf)) as folder:
        train_tokenizer(
            tokenizer_texts(run.recipe.data.source, run.recipe.data.prepare),
            folder,
            vocab_size=toy.vocab_size,
            chat_template=CHAT_TEMPLATE,
            special_tokens=SPECIAL_TOKENS,
        )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = {"eos_token_id": tokenizer.token_to_id(END), "pad_token_id": tokenizer.token_to_id(PAD)}
        write_toy_checkpoint(folder, config=sizes | ids, seed=toy.seed, weights="mxfp4")
        artifacts.write_manifest(folder, "toy-model", {"toy": to_tree(toy)})
    return Details(f"random gpt-oss as MXFP4, {size_of(Path(run.hf))}")
