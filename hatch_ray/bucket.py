"""A folder of a bucket (s3:// or gs://) through pyarrow, which takes credentials and endpoint from the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import BinaryIO

OPTIONS = {"s3": "allow_delayed_open=true", "gs": "retry_limit_seconds=60"}
"""pyarrow's: a small file is one request; Cloud Storage is tried again for so long (S3 a few times) before it fails."""
THREADS = 8
BLOCK = 8 * 2**20
READS = 10

Stat = list[int]
"""A file's bytes and time of change, ns."""


class StorageError(ValueError):
    """The bucket cannot be reached or written, or holds what must not be written over."""


class Bucket:
    """The files below an address, by their names. What goes wrong on its side is a StorageError of one line."""

    def __init__(self, address: str) -> None:
        from pyarrow.fs import FileSystem  # heavy, and needed for buckets alone

        self.address = address
        scheme, _, self._root = address.partition("://")
        with self._talk():
            emulated = scheme == "gs" and "CLOUD_STORAGE_EMULATOR_ENDPOINT" in os.environ  # which asks for no keys
            user = "anonymous@" if emulated else ""
            self._files, _ = FileSystem.from_uri(f"{scheme}://{user}{self._root}?{OPTIONS[scheme]}")

    def list(self) -> dict[str, Stat]:
        """Every file."""
        from pyarrow.fs import FileSelector, FileType

        with self._talk():
            found = self._files.get_file_info(FileSelector(self._root, recursive=True, allow_not_found=True))
        files = (info for info in found if info.type == FileType.File)
        return {info.path[len(self._root) + 1 :]: [info.size, info.mtime_ns] for info in files}

    def read(self, name: str) -> bytes | None:
        """A small file as a whole, None where there is none."""
        with self._talk(), suppress(FileNotFoundError):
            for _ in range(READS):
                with self._files.open_input_file(self._at(name)) as file:
                    content = bytes(file.read_at(file.size(), 0))
                if self._files.get_file_info(self._at(name)).size == len(content):
                    return content  # else it was written again between the request for its size and the one for it
            raise OSError(f"{name} changes faster than it can be read")
        return None

    def write(self, name: str, content: bytes) -> None:
        """A small file."""
        with self._talk(), self._files.open_output_stream(self._at(name)) as file:
            file.write(content)

    def get(self, name: str, size: int, target: BinaryIO) -> None:
        """Copy a file of about `size` bytes into an open one."""
        if size <= BLOCK:
            content = self.read(name)
            if content is None:
                raise StorageError(f"{self.address}/{name} was deleted while it was pulled; give the command again")
            target.write(content)
            return
        with self._talk():
            source = self._files.open_input_stream(self._at(name))
        with source:
            while block := self._block(source):
                target.write(block)

    def put(self, name: str, source: BinaryIO) -> None:
        """Copy an open file."""
        with self._talk():
            target = self._files.open_output_stream(self._at(name))
        while block := source.read(BLOCK):
            with self._talk():
                target.write(block)
        with self._talk():
            target.close()

    def delete(self, name: str) -> None:
        """Delete a file, unless it is gone already."""
        with self._talk(), suppress(FileNotFoundError):
            self._files.delete_file(self._at(name))

    def _block(self, source: BinaryIO) -> bytes:
        with self._talk():
            return source.read(BLOCK)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _talk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            text = " ".join(str(error).split())
            raise StorageError(
                f"{self.address}: {text[:400]} (keys and endpoint: docs/cluster.md#shared-storage)"
            ) from error


def each(act: Callable[[str], bool | None], names: Iterable[str]) -> int:
    """`act` on each name, several at a time; for how many it did not return False. The first failure ends it."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="bucket")
    try:
        return sum(done is not False for done in pool.map(act, names))
    finally:
        pool.shutdown(cancel_futures=True)
