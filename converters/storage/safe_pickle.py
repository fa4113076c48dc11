"""Pickles of a torch.distributed checkpoint, read without running anything that they name.

torch 2.13 (`FileSystemReader.read_metadata`) hands `.metadata` to `pickle.load`, which calls whatever a file names.
Here a name of a fixed list becomes a record of what the file says, any other is refused, and nothing is imported or
called: neither torch's classes nor megatron-core's, which a trained checkpoint names and which need not be installed.
"""

from __future__ import annotations

import pickle
import pickletools
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch

_DCP, _OLD = "torch.distributed.checkpoint", "torch.distributed._shard.sharded_tensor.metadata"
# Classes by what pickle does for their objects: NEWOBJ and BUILD, or REDUCE with plain arguments.
_BUILT = {
    f"{_DCP}.metadata": "Metadata MetadataIndex StorageMeta TensorStorageMetadata BytesStorageMetadata"
    " ChunkStorageMetadata TensorProperties",
    f"{_DCP}.filesystem": "_StorageInfo",
    f"{_DCP}.planner": "SavePlan WriteItem TensorWriteData BytesIOWriteData",
    _OLD: "TensorProperties",
    "megatron.core.dist_checkpointing.strategies.torch": "MCoreMetadata MCoreSavePlan",
}
_CALLED = {
    f"{_DCP}.metadata": "_MEM_FORMAT_ENCODING",
    f"{_DCP}.planner": "WriteItemType",
    _OLD: "MEM_FORMAT_ENCODING",
    "torch": "Size",
    "torch.serialization": "_get_layout",
    "collections": "OrderedDict",
    "pathlib": "PosixPath",  # of a checkpoint_id
}


class RefusedError(Exception):
    """What a pickle does that no checkpoint's needs; the message goes on from the file's name."""


# What a metadata file does beside naming and making objects; protocol 4, which torch's writer has always taken. PUT of
# the older ones makes pickle's memo as long as a file wants.
_PLAIN = (
    "PROTO FRAME STOP MARK MEMOIZE BINGET LONG_BINGET NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT"
    " BINUNICODE SHORT_BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT GLOBAL"
    " STACK_GLOBAL"
)


@dataclass(frozen=True)
class Named:
    """A class or function that a file names."""

    name: str
    built: bool


@dataclass(eq=False)
class Record:
    """What a file says of an object; equal to itself only."""

    kind: Named
    state: dict[str, Any] | tuple[Any, ...] | None = None


_NAMES: dict[tuple[str, str], Named | torch.dtype] = {
    (module, name): Named(name, table is _BUILT)
    for table in (_BUILT, _CALLED)
    for module, names in table.items()
    for name in names.split()
} | {("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class _Opcodes(dict[int, Any]):
    def __missing__(self, code: int) -> Any:
        names = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
        raise RefusedError(f"holds the pickle instruction {names.get(code, code)}")


class _Reader(pickle._Unpickler):
    """The Python form of pickle's machine, whose instructions are a table: those that a metadata file has."""

    dispatch = _Opcodes(
        {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _PLAIN.split()}
    )
    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise RefusedError(f"names {shown(module)}.{shown(name)}")
        return _NAMES[module, name]

    def load_newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, Named) or not kind.built or arguments != ():
            raise RefusedError(f"makes an object of {name_of(kind)}")
        self.stack.append(Record(kind))

    def load_reduce(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Named) or called.built:
            raise RefusedError(f"calls {name_of(called)}")
        if called.name == "Size":
            self.stack.append(_size(*arguments))
        elif called.name == "OrderedDict" and arguments == ():
            self.stack.append({})
        elif type(arguments) is tuple and all(type(each) in (str, int) for each in arguments):
            self.stack.append(Record(called))  # an encoding, a layout or a path: nothing that a tensor is read by
        else:
            raise RefusedError(f"calls {called.name} with an object")

    def load_build(self) -> None:
        state, record = self.stack.pop(), self.stack[-1]
        if not isinstance(record, Record) or not record.kind.built or record.state is not None:
            raise RefusedError(f"sets the state of {name_of(record)}")
        if record.kind.name == "TensorProperties" and type(state) is tuple:
            record.state = state
        elif type(state) is dict and all(type(key) is str and not key.startswith("__") for key in state):
            record.state = dict(state)  # a copy, as pickle makes one: what follows cannot change it
        else:
            raise RefusedError(f"sets an unknown state of {record.kind.name}")

    def load_setitems(self) -> None:
        items, into = self.pop_mark(), self.stack[-1]  # type: ignore[attr-defined]
        self._set(into, items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def _set(self, into: Any, items: list[Any]) -> None:
        # keys are hashed: that of a tuple of tuples of tuples, each twice the one within, takes for ever
        if type(into) is not dict or not all(type(key) in (str, int, Record) for key in items[::2]):
            raise RefusedError("sets an item of what is no dictionary, or by an unknown key")
        into.update(zip(items[::2], items[1::2], strict=True))

    dispatch |= {
        pickle.NEWOBJ[0]: load_newobj,
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


def load_records(content: bytes) -> Any:
    """The object that a pickle holds: plain values, sizes and dtypes of torch, and records.

    Raises:
        RefusedError: it names or does what no checkpoint's does.
        ValueError: it is damaged.
    """
    try:
        return _Reader(BytesIO(content)).load()
    except (pickle.UnpicklingError, EOFError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from None


def name_of(value: Any) -> str:
    """What a message calls a value."""
    kind = value.kind if isinstance(value, Record) else value
    return kind.name if isinstance(kind, Named) else f"a {type(value).__name__}"


def shown(text: str) -> str:
    """A foreign string as a message may hold it: short, and no control characters."""
    return ascii(text)[1:-1][:100]


def _size(numbers: Any) -> torch.Size:
    if type(numbers) not in (tuple, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise ValueError("a size is no row of numbers")
    return torch.Size(numbers)
