"""Rows of published parquet files, a few in memory at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq

Row = dict[str, Any]
BATCH_ROWS = 16
"""Rows of a parquet file in memory at once: images are inside."""


def columns_of(path: Path) -> tuple[list[str], int]:
    """(names of the columns, number of rows) of a file. Raises ValueError: unreadable."""
    try:
        with pq.ParquetFile(path) as file:
            return list(file.schema_arrow.names), int(file.metadata.num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def parquet_rows(paths: Sequence[Path], columns: Sequence[str], chosen: Collection[int] | None = None) -> Iterator[Row]:
    """Every row of the files, in order; or those whose number, counted over all files, is chosen.

    Raises ValueError: unreadable, or columns missing.
    """
    number = 0
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                if missing := [name for name in columns if name not in names]:
                    raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(names)}")
                for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                    wanted = [i for i in range(len(batch)) if chosen is None or number + i in chosen]
                    number += len(batch)
                    if wanted:
                        yield from (batch if len(wanted) == len(batch) else batch.take(wanted)).to_pylist()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is no readable parquet file ({' '.join(str(error).split())[:160]}); download it again")
