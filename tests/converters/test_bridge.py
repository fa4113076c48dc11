"""Megatron-Bridge's folders, read as others write them and written as it reads them; nothing of theirs is run here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from common.errors import CheckpointError, ConfigurationError
from converters.bridge_config import hf_config_of
from converters.bridge_folder import LATEST, TRACKER, iteration_of
from converters.export_hf import export_checkpoint
from converters.import_hf import import_checkpoint
from converters.nemo_reader import NemoReader
from converters.rewrite import rewrite_checkpoint
from converters.storage.checked_folder import ensure_safe
from converters.storage.nemo_weights import Piece, write_weights
from converters.storage.weights_reader import WeightsReader
from converters.verify import compare_checkpoints
from launch.cli import app
from modeling.hf_config import GptOssConfig, published_config

Tensors = Callable[[Path], dict[str, torch.Tensor]]
Same = Callable[..., bool]


@pytest.fixture(scope="module")
def bridge(mxfp4_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_checkpoint(mxfp4_toy, tmp_path_factory.mktemp("bridge") / "model", to="bridge")


@pytest.fixture
def copy(bridge: Path, tmp_path: Path) -> Path:
    """One that a test may change."""
    return shutil.copytree(bridge, tmp_path / "copy")


def iteration(root: Path) -> Path:
    return root / "iter_0000000"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


# ---- there and back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["mxfp4", "bf16"])
def test_hugging_face_there_and_back(
    weights: str, mxfp4_toy: Path, bf16_toy: Path, tmp_path: Path, tensors: Tensors, same: Same
) -> None:
    hf = mxfp4_toy if weights == "mxfp4" else bf16_toy
    out = import_checkpoint(hf, tmp_path / "bridge", to="bridge")
    back = export_checkpoint(out, tmp_path / "back", weights=weights)
    assert same(tensors(hf), tensors(back))
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (back / name).read_bytes() == (hf / name).read_bytes(), name


def test_nemo_there_and_back(imported: Path, bridge: Path, mxfp4_toy: Path, tmp_path: Path, tensors: Tensors) -> None:
    there = rewrite_checkpoint(imported, tmp_path / "bridge", to="bridge")
    back = rewrite_checkpoint(there, tmp_path / "nemo", to="nemo")
    for a, b in ((imported, there), (there, back), (bridge, back)):
        report = compare_checkpoints(a, b)
        assert report.same
        assert report.equal == 3 * 13 + 3
    # the scales went along, and the way to MXFP4 is still exact
    out = export_checkpoint(back, tmp_path / "hf", weights="mxfp4")
    assert all(torch.equal(value, tensors(mxfp4_toy)[name]) for name, value in tensors(out).items())
    files = {str(file.relative_to(imported)) for file in imported.rglob("*") if file.is_file()}
    assert {str(file.relative_to(back)) for file in back.rglob("*") if file.is_file()} == files
    for name in ("io.json", "model.yaml", "hf_config.json"):
        assert (back / "context" / name).read_bytes() == (imported / "context" / name).read_bytes()


def test_packed_experts_are_decoded(mxfp4_toy: Path, bridge: Path, tmp_path: Path) -> None:
    packed = import_checkpoint(mxfp4_toy, tmp_path / "packed", experts="mxfp4")
    assert compare_checkpoints(rewrite_checkpoint(packed, tmp_path / "out", to="bridge"), bridge).same


def test_the_folder_is_laid_out_as_bridge_lays_it_out(bridge: Path) -> None:
    assert (bridge / TRACKER).read_text() == "0"
    assert (bridge / LATEST).read_bytes() == (iteration(bridge) / "train_state.pt").read_bytes()
    state = torch.load(bridge / LATEST, weights_only=True)
    counts = ("step", "consumed_train_samples", "skipped_train_samples", "consumed_valid_samples")
    assert {name: (state[name].dtype, int(state[name])) for name in counts} == dict.fromkeys(counts, (torch.int64, 0))
    assert set(state) - set(counts) == {"floating_point_operations_so_far", "do_train", "do_valid", "do_test"}
    assert torch.load(iteration(bridge) / "common.pt", weights_only=True) == {
        "checkpoint_version": 3.0,
        "iteration": 0,
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }
    keys = WeightsReader(iteration(bridge), "").metadata.state_dict_metadata
    assert "decoder.layers.mlp.experts.experts.linear_fc1._extra_state/shard_2.3_3.4" in keys
    assert not [key for key in keys if key.startswith("module.")]


def test_a_run_config_of_the_real_model_says_what_bridge_says(tmp_path: Path) -> None:
    """The values of megatron-bridge 0.6.2's provider_bridge, but for one that is wrong there."""
    from converters.bridge_config import write_run_config

    file = tmp_path / "run_config.yaml"
    write_run_config(file, GptOssConfig.from_dict(published_config()), tokenizer="o/t", hub_id="openai/gpt-oss-20b")
    model = yaml.safe_load(file.read_text())["model"]
    assert model["hf_model_id"] == "openai/gpt-oss-20b"
    assert model["window_size"] == [127, 0]
    assert model["seq_length"] == 131072
    assert [model[f"yarn_{name}"] for name in ("rotary_scaling_factor", "beta_fast", "beta_slow")] == [32.0, 32.0, 1.0]
    assert model["yarn_correction_range_round_to_int"] is False
    assert model["activation_func"] == {
        "_target_": "megatron.core.fusions.fused_bias_geglu.quick_gelu",
        "_call_": False,
    }
    assert model["bias_activation_fusion"] is False  # which clamps before it adds the bias
    raw = hf_config_of(file)
    published = published_config()
    told = {"quantization_config", "dtype"}
    assert {name: value for name, value in raw.items() if name not in told} == {
        name: value for name, value in published.items() if name not in told
    }


# ---- as others write them -----------------------------------------------------------------------------------------


def test_the_config_comes_from_the_run_config_where_there_is_no_other(
    copy: Path, mxfp4_toy: Path, tmp_path: Path
) -> None:
    shutil.rmtree(iteration(copy) / "hf")
    out = export_checkpoint(copy, tmp_path / "out")
    assert compare_checkpoints(mxfp4_toy, out).same
    found, expected = (GptOssConfig.from_file(folder) for folder in (out, mxfp4_toy))
    assert replace(found, raw={}) == replace(expected, raw={})


def test_a_run_config_with_the_layers_fields_apart(copy: Path, bridge: Path) -> None:
    """GPTModelConfig of megatron.training keeps them in `transformer`; a whole frequency stands for its pattern."""
    shutil.rmtree(iteration(copy) / "hf")
    file = iteration(copy) / "run_config.yaml"
    model = yaml.safe_load(file.read_text())["model"] | {"window_attn_skip_freq": 2}
    apart = {"vocab_size": model.pop("vocab_size"), "transformer": model}
    file.write_text(yaml.safe_dump({"model": apart}))
    assert hf_config_of(file)["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
    assert compare_checkpoints(copy, bridge).same


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"softmax_type": "vanilla"}, "describes no gpt-oss"),
        ({"num_moe_experts": None}, "num_local_experts is None, not a whole number"),
        ({"kv_channels": "delete"}, "says nothing usable of kv_channels"),
        ({"window_size": None}, "says nothing usable of window_size"),
    ],
)
def test_a_run_config_that_is_none_of_gpt_oss(change: dict[str, Any], sentence: str, copy: Path) -> None:
    shutil.rmtree(iteration(copy) / "hf")
    file = iteration(copy) / "run_config.yaml"
    model = yaml.safe_load(file.read_text())["model"] | change
    file.write_text(yaml.safe_dump({"model": {name: value for name, value in model.items() if value != "delete"}}))
    with pytest.raises((CheckpointError, ConfigurationError), match=sentence):
        compare_checkpoints(copy, copy)


def test_without_any_config_another_gives_it(copy: Path, bridge: Path, mxfp4_toy: Path, tmp_path: Path) -> None:
    """As of Megatron-LM's own checkpoints, which are the same but for the run config."""
    shutil.rmtree(iteration(copy) / "hf")
    (iteration(copy) / "run_config.yaml").unlink()
    with pytest.raises(CheckpointError, match="name the imported base with --like"):
        export_checkpoint(copy, tmp_path / "out")
    for like in (bridge, mxfp4_toy):
        assert compare_checkpoints(mxfp4_toy, export_checkpoint(copy, tmp_path / like.name, like=like)).same


def _written_anew(
    root: Path, change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]], parts: int, **settings: Any
) -> None:
    """Write the tensors of a folder again, each cut into parts along its last axis but one, or its last."""
    reader = WeightsReader(iteration(root), "")
    tensors: dict[str, torch.Tensor] = {}
    for key in reader.tensors:
        tensors |= change(key, reader.read(key))
    for file in [*iteration(root).glob("*.distcp"), iteration(root) / ".metadata"]:
        file.unlink()
    pieces = []
    for key, value in tensors.items():
        axis = max(0, value.dim() - 2)
        start = 0
        for part in value.tensor_split(parts, axis):
            offset = tuple(start if i == axis else 0 for i in range(value.dim()))
            read = partial(torch.Tensor.contiguous, part)
            pieces.append(Piece(key, tuple(value.shape), offset, tuple(part.shape), value.dtype, read))
            start += part.shape[axis]
    write_weights(iteration(root), pieces, **settings)


def test_other_layouts_and_an_optimizer_beside(copy: Path, bridge: Path) -> None:
    """Chunks over layers and experts, cut where tensor parallelism cuts, as FullyParallelSave leaves them."""

    def with_moments(key: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
        moments = [f"optimizer.state.exp_avg.{key}", f"chained_1.optimizer.state.fp32_param.{key}"]
        return {key: value} | {name: torch.randn(value.shape) for name in moments}

    _written_anew(copy, with_moments, 3)
    assert compare_checkpoints(copy, bridge).same


def test_a_vocabulary_padded_for_tensor_parallelism(copy: Path, bridge: Path, tmp_path: Path, mxfp4_toy: Path) -> None:
    def padded(key: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
        return {key: torch.cat([value, torch.full((128, 64), 9.0).bfloat16()]) if len(value) == 128 else value}

    _written_anew(copy, padded, 2)
    assert NemoReader(copy).weights.shape("output_layer.weight") == (256, 64)
    assert compare_checkpoints(copy, bridge).same
    assert compare_checkpoints(export_checkpoint(copy, tmp_path / "out"), mxfp4_toy).same


def test_common_state_as_megatron_core_019_keeps_it(copy: Path) -> None:
    """In an object, where common.pt was; layers one by one are refused by what it says."""

    def single(key: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
        stacked = key.startswith("decoder.layers.")
        return {key.replace("layers.", f"layers.{i}."): v for i, v in enumerate(value)} if stacked else {key: value}

    _written_anew(copy, single, 1, common={"content_metadata": {"singleton_local_shards": True}})
    refusal = r"names of their own \(singleton_local_shards\): save it again"
    with pytest.raises(CheckpointError, match=refusal):
        export_checkpoint(copy, copy.with_name("out"))
    _move_common_state(iteration(copy))
    with pytest.raises(CheckpointError, match=refusal):
        export_checkpoint(copy, copy.with_name("out"))


def _move_common_state(folder: Path) -> None:
    """Move what common.pt holds into an object of the checkpoint."""
    import pickle

    from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

    state = torch.load(folder / "common.pt", weights_only=True)
    torch.save([state], folder / "__9_0.distcp")
    metadata = FileSystemReader(folder).read_metadata()
    index = MetadataIndex("common_state/shard_0_1")
    metadata.state_dict_metadata[index.fqn] = BytesStorageMetadata()
    metadata.storage_data[index] = _StorageInfo("__9_0.distcp", 0, (folder / "__9_0.distcp").stat().st_size)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata, protocol=4))
    (folder / "common.pt").unlink()
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    ensure_safe(folder)


# ---- which iteration ----------------------------------------------------------------------------------------------


def test_the_latest_iteration_is_read_or_the_one_that_is_named(copy: Path, bridge: Path) -> None:
    later = copy / "iter_0000120"
    shutil.copytree(iteration(copy), later)
    assert iteration_of(copy) == iteration(copy)
    state = torch.load(copy / LATEST, weights_only=True) | {"step": torch.tensor(120)}
    torch.save(state, copy / LATEST)
    assert iteration_of(copy) == later
    assert iteration_of(iteration(copy)) == iteration(copy)
    (copy / LATEST).unlink()
    assert iteration_of(copy) == iteration(copy)  # by the tracker
    (copy / TRACKER).write_text("release\n")
    later.rename(copy / "release")
    assert iteration_of(copy) == copy / "release"
    assert compare_checkpoints(copy, bridge).same


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        (TRACKER, "120", r"names iter_0000120, which is no whole checkpoint .there: iter_0000000.: name one"),
        (TRACKER, "twelve", "holds no number: name the folder of an iteration"),
        (LATEST, {"step": torch.tensor([1, 2])}, "says no step: name the folder of an iteration"),
        (LATEST, [1], "says no step"),
        (LATEST, b"not torch", "is damaged"),
    ],
)
def test_a_root_that_does_not_say_its_iteration(file: str, content: Any, sentence: str, copy: Path) -> None:
    (copy / LATEST).unlink()
    if isinstance(content, str):
        (copy / file).write_text(content)
    elif isinstance(content, bytes):
        (copy / file).write_bytes(content)
    else:
        torch.save(content, copy / file)
    with pytest.raises(CheckpointError, match=sentence):
        compare_checkpoints(copy, copy)


class _Runs:
    """What an attacker pickles."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_nothing_of_a_pickle_is_run(copy: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"step": torch.tensor(0), "more": _Runs(mark)}, copy / LATEST)
    with pytest.raises(CheckpointError, match="more than values and tensors"):
        compare_checkpoints(copy, copy)
    torch.save({"content_metadata": _Runs(mark)}, iteration(copy) / "common.pt")
    with pytest.raises(CheckpointError, match="more than values and tensors"):
        WeightsReader(iteration(copy), "").common()
    assert not mark.exists()


# ---- the commands -------------------------------------------------------------------------------------------------


def test_the_commands(mxfp4_toy: Path, imported: Path, tmp_path: Path) -> None:
    made = run("convert", "import", mxfp4_toy, tmp_path / "bridge", "--to", "bridge")
    assert made.exit_code == 0, made.output
    assert run("convert", "import", tmp_path / "bridge", tmp_path / "nemo").exit_code == 0
    assert run("convert", "import", imported, tmp_path / "bridge2", "--to", "bridge").exit_code == 0
    assert (
        run("convert", "export", imported, tmp_path / "bridge3", "--to", "bridge", "--weights", "fp32").exit_code == 0
    )
    assert run("convert", "export", tmp_path / "bridge2", tmp_path / "hf", "--weights", "mxfp4").exit_code == 0
    for a, b in (("bridge", "nemo"), ("bridge2", "hf")):
        same = run("convert", "verify", tmp_path / a, tmp_path / b)
        assert "42 tensors equal, 0 different" in same.output
    wider = run("convert", "verify", tmp_path / "bridge", tmp_path / "bridge3")
    assert wider.exit_code == 1
    assert "42 tensors in different dtypes" in wider.output
    again = (tmp_path / "bridge" / "manifest.json").stat().st_mtime_ns
    assert run("convert", "import", mxfp4_toy, tmp_path / "bridge", "--to", "bridge").exit_code == 0
    assert (tmp_path / "bridge" / "manifest.json").stat().st_mtime_ns == again  # it was there, and current


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("import", "HF", "OUT", "--to", "bridge", "--experts", "mxfp4"), "has no MXFP4 experts"),
        (("import", "BRIDGE", "OUT", "--experts", "mxfp4"), "is no Hugging Face folder"),
        (
            ("export", "BRIDGE", "OUT", "--to", "nemo", "--weights", "mxfp4"),
            "there are no weights 'mxfp4' for nemo: choose auto, fp32, bf16",
        ),
        (("export", "BRIDGE", "OUT", "--to", "nemo", "--push-to", "a/b"), "uploads Hugging Face folders"),
    ],
)
def test_what_cannot_be_is_a_sentence(
    arguments: tuple[str, ...], sentence: str, mxfp4_toy: Path, bridge: Path, tmp_path: Path
) -> None:
    places = {"HF": mxfp4_toy, "BRIDGE": bridge, "OUT": tmp_path / "out"}
    found = run("convert", *(places.get(name, name) for name in arguments))
    assert isinstance(found.exception, ConfigurationError)
    assert sentence in str(found.exception)
    assert not (tmp_path / "out").exists()
