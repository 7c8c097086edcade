"""Numbers from a binary file, one after the other; a file that ends too early is told with the byte."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np


class Cursor:
    """A place in a file, which is mapped into memory. All numbers are little endian, without padding."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        with path.open("rb") as file:
            size = path.stat().st_size
            self._bytes: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""

    def take(self, layout: str, what: str) -> tuple[Any, ...]:
        """Numbers in the layout of `struct`. what: names them in the message. Raises ValueError at the file's end."""
        return struct.unpack("<" + layout, self.bytes(struct.calcsize("<" + layout), what))

    def array(self, dtype: np.dtype[Any], count: int, what: str) -> np.ndarray:
        """(count,) of a little-endian type."""
        return np.frombuffer(self.bytes(dtype.itemsize * count, what), dtype)

    def bytes(self, count: int, what: str) -> bytes:
        """The next bytes."""
        self.skip(count, what)
        return self._bytes[self.at - count : self.at]

    def skip(self, count: int, what: str) -> None:
        """Go on without reading."""
        if self.at + count > len(self._bytes):
            raise ValueError(
                f"{self.path} is cut: it ends at byte {len(self._bytes)}, {what} needs {count} bytes from byte "
                f"{self.at} on; copy it again"
            )
        self.at += count

    def text(self, what: str) -> str:
        """Up to the next zero byte, which is skipped."""
        end = self._bytes.find(b"\0", self.at)
        length = (len(self._bytes) if end < 0 else end) - self.at
        return self.bytes(length + 1, what)[:-1].decode(errors="replace")
