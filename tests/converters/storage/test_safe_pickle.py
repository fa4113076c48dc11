"""A checkpoint runs nothing: every way by which a pickle calls something, through every reader of a checkpoint."""

from __future__ import annotations

import collections
import copyreg
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

import converters.storage.nemo_weights as nemo_weights
from common.errors import CheckpointError
from common.staging import place_of
from converters.import_hf import import_checkpoint
from converters.storage.checked_folder import ensure_safe
from converters.storage.metadata_file import read_metadata
from converters.storage.nemo_weights import FINISHED
from converters.storage.weights_reader import WeightsReader
from evaluation.weight_changes import changes
from launch import cli
from modeling.hf_config import GptOssConfig
from pipeline.checkpoints import Parts
from tests.converters.adapters import write_adapter
from tests.test_house import ROOT, WITHOUT_HEAVY

MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"


class Call:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.how = (function, arguments)

    def __reduce__(self) -> tuple[Any, Any]:
        return self.how


def word(text: str) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode()


def found(module: str, name: str) -> bytes:
    """Instructions that put a function on the stack by its qualified name."""
    return word(module) + word(name) + pickle.STACK_GLOBAL


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + pickle.MARK + b"".join(arguments) + pickle.TUPLE + pickle.REDUCE


def whole(instructions: bytes) -> bytes:
    return pickle.PROTO + b"\x04" + instructions + pickle.STOP


def touching(mark: Path) -> dict[str, bytes]:
    """Pickles that make a file, each by its own way, and what else no metadata file holds."""
    command = f"touch {mark}"
    system, argument = found("os", "system"), word(command)
    evil, getattr_ = Call(os.system, command), found("builtins", "getattr")
    module = called(found("builtins", "__import__"), word("os"))
    made = found("torch.distributed.checkpoint.metadata", "Metadata") + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    state = pickle.EMPTY_DICT + word("__setstate__") + system + pickle.SETITEM
    return {
        **{f"REDUCE, protocol {number}": pickle.dumps(evil, number) for number in range(6)},
        "INST": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + command.encode() + b"'\no.",
        "NEWOBJ": whole(found("subprocess", "Popen") + pickle.MARK + argument + pickle.TUPLE + pickle.NEWOBJ),
        "NEWOBJ_EX": whole(found("subprocess", "Popen") + b"(" + argument + b"t}" + pickle.NEWOBJ_EX),
        "a path of attributes": whole(called(found("torch.serialization", "os.system"), argument)),
        "a path from a known class": whole(
            called(found("torch.distributed.checkpoint.metadata", "os.system"), argument)
        ),
        "getattr": whole(called(called(getattr_, module, word("system")), argument)),
        "getattr of a known name": whole(
            called(getattr_, found("torch", "Size"), word("__init_subclass__"))
        ),
        "BUILD": whole(made + state + pickle.BUILD + argument + pickle.BUILD),
        "BUILD without names": whole(made + b"}" + word("__setstate__") + b"}s" + pickle.BUILD),
        "BUILD of a class": whole(found("torch.distributed.checkpoint.metadata", "Metadata") + b"N}\x86b"),
        "a call of a class": whole(called(found("torch.distributed.checkpoint.metadata", "Metadata"))),
        "a call of what was made": whole(called(made)),
        "nested in the plans": pickle.dumps(Metadata({}, {"a": [{"b": (1, {"c": evil})}]}, {})),  # type: ignore[arg-type]
        "among the modules": pickle.dumps(Metadata({}, None, {}, StorageMeta(modules=[evil]))),  # type: ignore[list-item]
        "a key": pickle.dumps(Metadata({}, None, {Call(eval, "0"): 1})),  # type: ignore[dict-item]
        "after STOP of another": pickle.dumps([evil]) + pickle.dumps(Metadata({})),
        "a memo": whole(word("os") + pickle.MEMOIZE + word("system") + pickle.STACK_GLOBAL + b"\x8c\x01x\x85R"),
        "PERSID": b"Pos.system\n.",
        "BINPERSID": whole(argument + pickle.BINPERSID),
        "megatron's own": whole(called(found(MEGATRON, "os.system"), argument)),
    }  # fmt: skip


NAMES = list(touching(Path("x")))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "made"


@pytest.fixture
def nemo(imported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(imported, tmp_path / "nemo")


def command_line(*arguments: str | Path) -> int:
    """Exit status of the command in this process; what it printed is pytest's."""
    before = sys.argv
    sys.argv = ["nemo-run", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def through_every_reader(nemo: Path, adapter: Path, hf: Path, out: Path) -> dict[str, Callable[[], Any]]:
    """What opens a checkpoint whose `weights/` is hostile."""
    from evaluation import megatron_model

    config = GptOssConfig.from_file(nemo / "context" / "hf_config.json")
    return {
        "export": lambda: command_line("convert", "export", nemo, out),
        "export of an adapter": lambda: command_line("convert", "export", nemo, out, "--adapter", adapter),
        "verify": lambda: command_line("convert", "verify", hf, nemo),
        "adapter": lambda: command_line("convert", "adapter", adapter, out),
        "inspect": lambda: changes(nemo, nemo, config, is_adapter=False),
        "evaluate": lambda: megatron_model.load(Parts(nemo, None, nemo), seq_length=8, precision="fp32"),
        "evaluate an adapter": lambda: megatron_model.load(Parts(nemo, adapter, nemo), seq_length=8, precision="fp32"),
    }


def test_no_reader_runs_what_a_metadata_file_names(
    nemo: Path, mxfp4_toy: Path, mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from modeling import inference

    monkeypatch.setattr(inference, "build_model", lambda *_, **__: pytest.fail("the check comes first"))
    adapter = write_adapter(tmp_path / "adapter", nemo)
    readers = through_every_reader(nemo, adapter, mxfp4_toy, tmp_path / "out")
    capsys.readouterr()  # what NeMo says when it is imported
    for name, content in touching(mark).items():
        for checkpoint in (nemo, adapter):
            (checkpoint / "weights" / ".metadata").write_bytes(content)
        for reader, run in readers.items():
            try:
                status, said = run(), capsys.readouterr().err
                assert status == 1, (name, reader)
            except CheckpointError as error:
                said = f"error: {error}"
            assert said.startswith("error: "), (name, reader)
            assert len(said.strip().splitlines()) == 1, (name, reader, said)
            assert ".metadata" in said, (name, reader, said)
            assert not mark.exists(), (name, reader)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name in NAMES if "key" not in name and "after" not in name])
def test_the_sentence_names_what_was_refused(name: str, mark: Path, tmp_path: Path) -> None:
    file = tmp_path / ".metadata"
    file.write_bytes(touching(mark)[name])
    with pytest.raises(CheckpointError, match=r"\.metadata (names|holds|calls|makes|sets) .*source that you trust"):
        read_metadata(file)
    assert not mark.exists()


def test_the_attacks_would_work_without_the_check(mark: Path) -> None:
    """Else the tests above show nothing."""
    working = 0
    for content in touching(mark).values():
        try:
            pickle.loads(content)
        except Exception:
            continue
        finally:
            working += mark.exists()
            mark.unlink(missing_ok=True)
    assert working >= 14


@pytest.fixture
def extension() -> Iterator[int]:
    """os.system under a number, found before and so in pickle's cache, past `find_class`."""
    copyreg.add_extension(os.system.__module__, "system", 0x51)
    assert pickle.loads(b"\x80\x02\x82\x51.") is os.system
    yield 0x51
    copyreg.remove_extension(os.system.__module__, "system", 0x51)


def test_the_registry_of_extensions_is_no_way_in(extension: int, mark: Path, tmp_path: Path) -> None:
    file = tmp_path / ".metadata"
    codes = (b"\x82" + struct.pack("<B", extension), b"\x83" + struct.pack("<H", extension),
             b"\x84" + struct.pack("<i", extension))  # fmt: skip
    for code, name in zip(codes, ("EXT1", "EXT2", "EXT4"), strict=True):
        file.write_bytes(whole(called(code, word(f"touch {mark}"))))
        with pytest.raises(CheckpointError, match=f"holds the pickle instruction {name}: "):
            read_metadata(file)
    assert not mark.exists()


def tuples(depth: int) -> bytes:
    """A tuple of twice the same tuple of twice the same tuple …, whose hash takes 2^depth steps."""
    return pickle.EMPTY_TUPLE + b"".join(pickle.MEMOIZE + b"h" + bytes([i]) + pickle.TUPLE2 for i in range(depth))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        whole(b"]" * 1_000_000 + b"a" * 999_999),
        whole(b")" + pickle.TUPLE1 * 1_000_000),
        whole(b"}" + tuples(60) + b"Ns"),
        whole(b"N" * 10),
        whole(b"\x95" + struct.pack("<Q", 2**62)),
        whole(b"\x8d" + struct.pack("<Q", 2**62)),
        whole(b"\x8a\xff" + b"\xff" * 255),
        whole(b"r\xff\xff\xff\xff"),
        whole(called(found("torch", "Size"), b"(" + b"K\x01" * 3 + b"\x8a\x0a" + b"\x7f" * 10 + b"t")),
        pickle.dumps(Metadata({"a": BytesStorageMetadata()}, None, None)),
        pickle.dumps(Metadata({"a": TensorStorageMetadata(None, torch.Size([1]), [])}, None, {})),  # type: ignore[arg-type]
        pickle.dumps(Metadata({1: BytesStorageMetadata()}, None, {})),  # type: ignore[dict-item]
        pickle.dumps({"state_dict_metadata": {}}),
    ],
)  # fmt: skip
def test_what_is_damaged_or_endless_is_a_sentence_at_once(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / ".metadata"
    file.write_bytes(content)
    started = time.perf_counter()
    with pytest.raises(CheckpointError):
        read_metadata(file)
    assert time.perf_counter() - started < 10


def test_a_metadata_file_is_not_read_when_it_is_too_large(tmp_path: Path) -> None:
    with (tmp_path / ".metadata").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match="1,099,511,627,776 bytes"):
        read_metadata(tmp_path / ".metadata")


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "..", "", "a/b", "a\0b"])
def test_no_entry_lies_outside_of_the_folder(path: str, nemo: Path) -> None:
    metadata = FileSystemReader(nemo / "weights").read_metadata()
    next(iter(metadata.storage_data.values())).relative_path = path
    (nemo / "weights" / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"names the file .*, outside of its folder"):
        WeightsReader(nemo / "weights")


def test_a_name_with_control_characters_does_not_reach_the_console(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(whole(found("\x1b[2Jos", "system\r" + "x" * 150)))
    with pytest.raises(CheckpointError) as error:
        read_metadata(tmp_path / ".metadata")
    assert str(error.value).isprintable()


def archive(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def put(weights: Path, key: str, content: bytes) -> None:
    """Give a key of a checkpoint the bytes of another file."""
    metadata = FileSystemReader(weights).read_metadata()
    place = metadata.storage_data[MetadataIndex(key)]
    place.relative_path, place.offset, place.length = "__99_0.distcp", 0, len(content)
    (weights / "__99_0.distcp").write_bytes(content)
    (weights / ".metadata").write_bytes(pickle.dumps(metadata))


def a_state(weights: Path) -> str:
    stored = FileSystemReader(weights).read_metadata().state_dict_metadata
    return next(key for key, value in stored.items() if isinstance(value, BytesStorageMetadata))


def test_entries_that_are_no_tensors_run_nothing(nemo: Path, mark: Path) -> None:
    """torch's planner loads them with weights_only=False."""
    weights = nemo / "weights"
    put(weights, a_state(weights), archive([Call(os.system, f"touch {mark}")]))
    with pytest.raises(CheckpointError, match=r"holds more than values and tensors .*system"):
        ensure_safe(weights)
    assert not mark.exists()


@pytest.mark.parametrize("where", ["entry", "common"])
def test_a_state_that_transformer_engine_would_unpickle_is_refused(where: str, nemo: Path, mark: Path) -> None:
    weights = nemo / "weights"
    content = pickle.dumps(Call(os.system, f"touch {mark}"))
    state = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    if where == "entry":
        put(weights, a_state(weights), archive([state]))
    else:
        torch.save({"state_dict": {"module.decoder.final_layernorm._extra_state": state}}, weights / "common.pt")
    with pytest.raises(CheckpointError, match="Transformer Engine would unpickle"):
        ensure_safe(weights)
    put(weights, a_state(weights), archive([torch.empty(0, dtype=torch.uint8)]))  # as it is saved without FP8
    torch.save({}, weights / "common.pt")
    ensure_safe(weights)


def test_the_common_state_runs_nothing(nemo: Path, mark: Path) -> None:
    common = nemo / "weights" / "common.pt"
    torch.save({"optimizer": {"a": [Call(os.system, f"touch {mark}")]}}, common)
    with pytest.raises(CheckpointError, match=r"common\.pt holds more than values and tensors"):
        ensure_safe(common.parent)
    for content in (b"", b"nonsense", pickle.dumps(Call(os.system, f"touch {mark}")), archive({})[:-100]):
        common.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"common\.pt"):
            ensure_safe(common.parent)
    torch.save({"step": torch.tensor(3), "groups": collections.OrderedDict(lr=1e-3)}, common)
    ensure_safe(common.parent)
    assert not mark.exists()


def test_states_of_megatrons_optimizer_pass(nemo: Path) -> None:
    """As megatron-core 0.15.3 (`distrib_optimizer.py`, `sharded_state_dict`) keeps them as objects under keys."""
    groups = {"param_groups": [{"lr": 1e-4, "betas": (0.9, 0.95), "step": 7, "wd_mult": 1.0, "decoupled_lr": None}]}
    numbers = [{(torch.bfloat16, torch.float32): [131072, 4096]}]
    for state in ([groups], [numbers], [{"step": torch.tensor(7.0), "scale": torch.ones(3)}]):
        key = a_state(nemo / "weights")
        metadata = FileSystemReader(nemo / "weights").read_metadata()
        renamed = "optimizer.distributed.dp_group_idx_0.per_bucket_numel/shard_0_1"
        metadata.state_dict_metadata[renamed] = metadata.state_dict_metadata.pop(key)
        metadata.storage_data[MetadataIndex(renamed)] = metadata.storage_data.pop(MetadataIndex(key))
        (nemo / "weights" / ".metadata").write_bytes(pickle.dumps(metadata))
        put(nemo / "weights", renamed, archive(state))
        ensure_safe(nemo / "weights")


def test_an_archive_that_unpacks_to_more_is_refused(nemo: Path) -> None:
    import zipfile

    with zipfile.ZipFile(nemo / "weights" / "common.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", b"\0" * 10**6)
    with pytest.raises(CheckpointError, match="unpacks to more than it is"):
        ensure_safe(nemo / "weights")


@pytest.mark.parametrize("format", [{"sharded_backend": "zarr"}, {"common_backend": "numpy"}, [], "{" * 10**6])
def test_other_formats_are_not_handed_over(format: Any, nemo: Path) -> None:
    said = format if isinstance(format, str) else json.dumps(format)
    (nemo / "weights" / "metadata.json").write_text(said)
    with pytest.raises(CheckpointError, match=r"metadata\.json"):
        ensure_safe(nemo / "weights")


def test_checking_reads_no_tensor(nemo: Path) -> None:
    metadata = FileSystemReader(nemo / "weights").read_metadata()
    states = {info.relative_path for key, info in metadata.storage_data.items() if key.offset is None}
    for file in (nemo / "weights").glob("*.distcp"):
        if file.name not in states:
            file.unlink()
    ensure_safe(nemo / "weights")


def test_training_checks_what_it_starts_from_and_goes_on_from(nemo: Path, mark: Path, tmp_path: Path) -> None:
    pytest.importorskip("nemo")
    from training.train import Training

    out = tmp_path / "finetune"
    last = shutil.copytree(nemo, out / "checkpoints" / "step=3-last")
    training = Training("finetune", None, start=nemo, like=nemo, dataset=tmp_path, out=out)  # type: ignore[arg-type]
    torch.save({"global_step": 3, "x": Call(os.system, f"touch {mark}")}, last / "weights" / "common.pt")
    with pytest.raises(CheckpointError, match=r"step=3-last/weights/common\.pt"):
        training.run()
    shutil.rmtree(last)
    (nemo / "weights" / ".metadata").write_bytes(pickle.dumps(Call(os.system, f"touch {mark}")))
    with pytest.raises(CheckpointError, match=r"nemo/weights/\.metadata names"):
        training.run()
    adapter = write_adapter(out / "checkpoints" / "step=3-last", nemo)
    (adapter / "weights" / ".metadata").unlink()
    with pytest.raises(CheckpointError, match="step=3-last"):
        training.run()
    assert not mark.exists()


def test_nemo_builds_nothing_from_a_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """io.json names callables that `load_context` calls: a training is given its model, and leaves the file alone."""
    pytest.importorskip("nemo")
    import nemo.lightning.io as nemo_io

    from training import train

    monkeypatch.setattr(nemo_io, "load_context", lambda *_, **__: pytest.fail("a context was loaded"))
    given: dict[str, Any] = {}
    monkeypatch.setattr(train.llm, "finetune", lambda **arguments: given.update(arguments))
    resume = train.resume_from(tmp_path)
    assert resume.restore_config is not None
    assert not resume.restore_config.load_artifacts

    class Trainer:
        class strategy:  # noqa: N801
            restore_config = None

    resume.setup(Trainer, None)  # type: ignore[arg-type]
    assert Trainer.strategy.restore_config is resume.restore_config


def trained(checkpoint: Path) -> Path:
    """Give a checkpoint the metadata of one that Megatron saved: its own classes, with the plans of all ranks."""
    from modeling import cpu_backend

    cpu_backend.activate()
    strategies = pytest.importorskip(MEGATRON)
    file = checkpoint / "weights" / ".metadata"
    read = pickle.loads(file.read_bytes())
    items = []
    for key, value in read.state_dict_metadata.items():
        if isinstance(value, TensorStorageMetadata):
            for chunk in value.chunks:
                data = TensorWriteData(chunk, TensorProperties(dtype=value.properties.dtype), value.size)
                items.append(WriteItem(MetadataIndex(key, chunk.offsets), WriteItemType.SHARD, tensor_data=data))
        else:
            items.append(WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO))
    mcore = {key: {} for key in read.state_dict_metadata}
    plan = strategies.MCoreSavePlan(items, planner_data=collections.OrderedDict(a=("a", 1)), mcore_data=mcore)
    made = strategies.MCoreMetadata(
        read.state_dict_metadata, None, read.storage_data, StorageMeta(Path("/some/where"), "a", "b"),
        mcore_data=mcore,
    )  # fmt: skip
    made.all_local_plans = [plan, plan]
    file.write_bytes(pickle.dumps(made))
    assert b"MCoreMetadata" in file.read_bytes()
    return checkpoint


COMMANDS = (
    WITHOUT_HEAVY
    + """
import json
from launch.cli import main
from pathlib import Path
for command in json.loads(Path("commands.json").read_text()):
    sys.argv = ["nemo-run", *command]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, command
from evaluation.weight_changes import changes
from modeling.hf_config import GptOssConfig
config = GptOssConfig.from_file(Path("nemo/context/hf_config.json"))
print(len(changes(Path("nemo"), Path("adapter"), config, is_adapter=True)), "matrices changed")
assert not {"nemo", "megatron", "lightning", "nemo_run"} & set(sys.modules)
"""
)


def test_trained_checkpoints_are_read_without_megatron(
    nemo: Path, mxfp4_toy: Path, tmp_path: Path, same: Callable[..., bool], tensors: Callable[[Path], Any]
) -> None:
    adapter = write_adapter(tmp_path / "adapter", nemo)
    assert command_line("convert", "export", nemo, tmp_path / "before", "--adapter", adapter, "--weights", "bf16") == 0
    assert command_line("convert", "adapter", adapter, tmp_path / "peft-before") == 0
    trained(nemo)
    trained(adapter)
    commands = [
        ["convert", "export", "nemo", "plain", "--weights", "bf16"],
        ["convert", "verify", str(mxfp4_toy), "nemo"],
        ["convert", "export", "nemo", "merged", "--adapter", "adapter", "--weights", "bf16"],
        ["convert", "adapter", "adapter", "peft"],
    ]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert " matrices changed" in done.stdout
    for a, b in (("before", "merged"), ("peft-before", "peft")):
        found = tensors(tmp_path / b)
        assert found
        assert same(tensors(tmp_path / a), found)


@pytest.mark.parametrize("kind", ["imported", "trained"])
def test_all_that_torch_reads_is_read_the_same(kind: str, nemo: Path, tmp_path: Path) -> None:
    if kind == "trained":
        trained(nemo)
    for checkpoint in (nemo, write_adapter(tmp_path / "adapter", nemo)):
        ensure_safe(checkpoint / "weights")
        expected = FileSystemReader(checkpoint / "weights").read_metadata()
        found = read_metadata(checkpoint / "weights" / ".metadata")
        assert found.state_dict_metadata == expected.state_dict_metadata
        assert found.storage_data == expected.storage_data
        assert list(found.storage_data) == list(expected.storage_data)


def test_the_notes_of_a_killed_run_are_no_pickles(
    mxfp4_toy: Path, imported: Path, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a former version, or anybody's, are written anew; a run that goes on ends with the same bytes."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(nemo_weights, "_metadata", stop)  # after all shards
        with pytest.raises(KeyboardInterrupt):
            import_checkpoint(mxfp4_toy, tmp_path / "out")
    notes = list((place_of(tmp_path / "out") / "weights").glob(f"*{FINISHED}"))
    assert len(notes) == 2
    assert all(isinstance(json.loads(note.read_bytes()), list) for note in notes)
    evil = pickle.dumps(Call(os.system, f"touch {mark}"))
    for note, content in zip(notes, (evil, b'[["a", 1]]'), strict=True):
        note.write_bytes(content)
    out = import_checkpoint(mxfp4_toy, tmp_path / "out")
    assert not mark.exists()
    for file in (imported / "weights").iterdir():
        assert file.read_bytes() == (out / "weights" / file.name).read_bytes(), file.name
