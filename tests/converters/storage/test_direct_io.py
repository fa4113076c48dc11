"""Reading and writing past the page cache, and the memory it goes through, against plain files and torch.load."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from common.buffers import LARGE, empty_bytes
from converters.storage import direct_io
from converters.storage.direct_io import DirectFile, WriteStream
from converters.storage.torch_archives import TorchArchives

PAGE = 4096
NEW = os.O_RDWR | os.O_CREAT | os.O_TRUNC
O_DIRECT = getattr(os, "O_DIRECT", 0)


def random_bytes(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def refuse_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without O_DIRECT, such as an old tmpfs."""
    opened = os.open

    def without(path: Path, flags: int, *mode: int) -> int:
        if flags & O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags, *mode)

    monkeypatch.setattr(direct_io.os, "open", without)


def refuse_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that opens files for O_DIRECT, and refuses the requests."""
    for name in ("pwrite", "preadv"):
        plain = getattr(os, name)

        def without(file: int, *arguments: object, plain: Callable[..., int] = plain) -> int:
            if fcntl.fcntl(file, fcntl.F_GETFL) & O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return plain(file, *arguments)

        monkeypatch.setattr(direct_io.os, name, without)


FILE_SYSTEMS = {"direct": lambda monkeypatch: None, "not opened": refuse_to_open, "refused": refuse_requests}


@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
@pytest.mark.parametrize("position", [0, 1, 598, PAGE - 1, PAGE, 3 * PAGE + 64])
@pytest.mark.parametrize("size", [0, 1, PAGE, LARGE - 1, LARGE, LARGE + 1, 9 * 2**20 + 12345])
def test_what_is_written_anywhere_is_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_system: str, position: int, size: int
) -> None:
    FILE_SYSTEMS[file_system](monkeypatch)
    path, before, data = (
        tmp_path / "file",
        random_bytes(PAGE * 4, 1),
        random_bytes(size + 3)[3:],
    )  # at no page in memory
    file = DirectFile(path, NEW)
    file.write(before.data, 0)
    file.write(data.data, position)
    expected = bytearray(before)
    expected[position : position + size] = data.tobytes()
    assert path.read_bytes() == expected
    np.testing.assert_array_equal(file.read(position, size), data)
    np.testing.assert_array_equal(DirectFile(path, cached=True).read(position, size), data)


@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
def test_a_file_ends_where_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_system: str) -> None:
    FILE_SYSTEMS[file_system](monkeypatch)
    data = random_bytes(3 * 2**20 + 5)
    (tmp_path / "file").write_bytes(data.tobytes())
    file = DirectFile(tmp_path / "file")
    np.testing.assert_array_equal(file.read(7, 2**23), data[7:])
    assert len(file.read(2**23, 2**21)) == len(file.read(2**23, 10)) == 0


def test_threads_that_share_pages_at_their_borders_lose_nothing(tmp_path: Path) -> None:
    sizes = [LARGE + 1000 * i + 1 for i in range(24)]
    starts = np.cumsum([0, *sizes])
    data = random_bytes(int(starts[-1]))
    file = DirectFile(tmp_path / "file", NEW)
    os.truncate(tmp_path / "file", len(data))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: file.write(data[starts[i] : starts[i + 1]].data, int(starts[i])), range(24)))
        parts = list(pool.map(lambda i: file.read(int(starts[i]), sizes[i]), range(24)))
    assert (tmp_path / "file").read_bytes() == data.tobytes()
    np.testing.assert_array_equal(np.concatenate(parts), data)


def test_large_parts_bypass_the_page_cache_and_small_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = DirectFile(tmp_path / "file", NEW)
    if file.cached:
        pytest.skip("this file system knows no O_DIRECT")
    direct: list[bool] = []
    write = os.pwrite

    def noted(descriptor: int, data: memoryview, position: int) -> int:
        direct.append(bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & O_DIRECT))
        return write(descriptor, data, position)

    monkeypatch.setattr(direct_io.os, "pwrite", noted)
    file.write(random_bytes(1000).data, 0)
    assert direct == [False]
    file.write(random_bytes(2**22).data, 2 * PAGE)
    assert direct == [False, True]


def test_a_full_disk_is_an_error() -> None:
    with pytest.raises(OSError, match="No space left"):
        DirectFile(Path("/dev/full"), os.O_WRONLY).write(random_bytes(10).data, 0)


def test_a_stream_knows_where_it_is(tmp_path: Path) -> None:
    parts = [random_bytes(size, size) for size in (3, 2**21 + 1, 0, 70_000, 2**20)]
    with WriteStream(tmp_path / "file") as stream:
        for part in parts:
            assert stream.write(part.data) == len(part)
        assert stream.tell() == sum(map(len, parts))
        os.fsync(stream.fileno())
    assert (tmp_path / "file").read_bytes() == np.concatenate(parts).tobytes()


# ---- memory -------------------------------------------------------------------------------------------------------


def test_memory_is_used_again_only_when_no_view_is_left() -> None:
    first = empty_bytes(LARGE)
    first[:] = 1
    address, view = first.ctypes.data, torch.from_numpy(first[1:].reshape(5, -1)[2:])
    del first
    second = empty_bytes(2 * LARGE)
    second[:] = 2
    assert (view == 1).all()
    assert second.ctypes.data != address
    del view
    assert empty_bytes(3 * LARGE).ctypes.data == address
    assert (second == 2).all()


@pytest.mark.parametrize("size", [0, 1, LARGE - 1, LARGE, 2**25, 2**25 + 1, 2**27 + 1])
def test_memory_has_its_size_and_begins_at_a_page(size: int) -> None:
    memory = empty_bytes(size)
    assert (memory.shape, memory.dtype) == ((size,), np.uint8)
    assert memory.flags.writeable
    assert size < LARGE or memory.ctypes.data % PAGE == 0


# ---- archives of torch.save ---------------------------------------------------------------------------------------


def stored(tensors: list[torch.Tensor], path: Path) -> list[tuple[int, int]]:
    """Write one archive after the other; where each begins, and how long it is."""
    places = []
    with path.open("wb") as file:
        file.write(b"odd")
        for tensor in tensors:
            start = file.tell()
            torch.save(tensor, file)
            places.append((start, file.tell() - start))
    return places


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
@pytest.mark.parametrize("width", [6, 1030], ids=["small", "large"])
def test_parts_of_archives_are_what_torch_reads(tmp_path: Path, dtype: torch.dtype, width: int) -> None:
    random = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randint(0, 100, shape, generator=random).to(dtype)

    square, buffer = tensor(width, width), tensor(2 * width)
    tensors = [
        tensor(1, 1, width, width),
        tensor(1, 1, width, width),  # as the one before: read with what was learned of it
        tensor(width, 1, 1, width),  # as many values of the same rank, in another shape
        tensor(2, 3, width),
        square.T,  # the same shape as the next one, stored in another order
        square,
        buffer[5 : 5 + width],  # of a larger storage
        tensor(0, 4),
        tensor(1)[0],
    ]
    places = stored(tensors, tmp_path / "file")
    archives, file = TorchArchives(), DirectFile(tmp_path / "file")
    for original, (start, size) in [*zip(tensors, places, strict=True)] * 2:
        whole = ([0] * original.dim(), list(original.shape))
        parts = [whole]
        for _ in range(8 if original.numel() else 0):
            ends = [sorted(torch.randint(0, n + 1, (2,), generator=random).tolist()) for n in original.shape]
            parts.append(([first for first, _ in ends], [max(1, last - first) for first, last in ends]))
            parts[-1] = ([min(o, n - 1) for o, n in zip(parts[-1][0], original.shape, strict=True)], parts[-1][1])
        for offsets, lengths in parts:
            found = archives.read(file, start, size, offsets, lengths)
            expected = original[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))]
            assert found.dtype == dtype
            assert found.shape == torch.Size(lengths)
            assert torch.equal(found, expected)
            assert found.data_ptr() % dtype.itemsize == 0


def test_a_part_of_a_large_archive_is_read_without_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ((start, size),) = stored([torch.arange(2**23).reshape(2**13, 2**10)], tmp_path / "file")
    read: list[int] = []
    plain = os.preadv

    def noted(*arguments: object) -> int:
        read.append(plain(*arguments))  # pyright: ignore[reportArgumentType]
        return read[-1]

    monkeypatch.setattr(direct_io.os, "preadv", noted)
    found = TorchArchives().read(DirectFile(tmp_path / "file"), start, size, [100, 0], [50, 2**10])
    assert torch.equal(found, torch.arange(100 * 2**10, 150 * 2**10).reshape(50, 2**10))
    assert sum(read) < 2**20


def test_what_is_no_archive_is_an_error(tmp_path: Path) -> None:
    ((start, size),) = stored([torch.zeros(1000)], tmp_path / "file")
    archives = TorchArchives()
    archives.read(DirectFile(tmp_path / "file"), start, size, [0], [1000])
    whole = (tmp_path / "file").read_bytes()
    for number, damaged in enumerate((whole[:-2500], whole[:100], bytes(len(whole)))):
        (tmp_path / str(number)).write_bytes(damaged)
        with pytest.raises((RuntimeError, ValueError, EOFError, pickle.UnpicklingError)):
            archives.read(DirectFile(tmp_path / str(number)), start, size, [0], [1000])
