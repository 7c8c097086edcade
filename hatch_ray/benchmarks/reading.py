"""What the readers of all benchmarks share: fields of a row, images that are bytes, rows that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image

from hatch_ray.benchmarks.files import check_image, decode_image
from hatch_ray.benchmarks.item import BadRowError, Item
from hatch_ray.data.parquet import Row
from hatch_ray.protocol.prompt import check_text
from hatch_ray.sample import AnswerForm


def text_of(row: Row, *names: str) -> str:
    """The first of the fields that holds text. Raises BadRowError."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            try:
                check_text(value)
            except ValueError:
                raise BadRowError("reserved_token") from None
            return value
    raise BadRowError(f"no_{names[-1]}")


def letter_of(row: Row, name: str, letters: str) -> str:
    """The gold letter of a field. Raises BadRowError."""
    gold = text_of(row, name).strip()
    if len(gold) != 1 or gold.upper() not in letters:
        raise BadRowError("gold_is_no_letter")
    return gold


def item_of(
    name: str,
    task: str,
    group: str,
    question: str,
    gold: str,
    images: Sequence[Any] | None,
    form: AnswerForm = "letter",
    cluster: str = "",
) -> Item:
    """A question whose images are the bytes of files; cluster: its name where none is given. Raises BadRowError."""
    if not images:
        raise BadRowError("no_images")
    checked = [check_image(image) for image in images]

    def load(max_pixels: int) -> list[Image.Image]:
        return [decode_image(image, max_pixels) for image in checked]

    return Item(name, task, group, form, question, gold, cluster or name, len(checked), load)


def items_of(rows: Iterator[Row], parse: Callable[[Row, str], Item | None]) -> Iterator[Item | BadRowError]:
    """Items and faults; rows for which `parse` gives None belong to another part. Ids carry the row's number, since
    those of the files need not be unique.
    """
    for number, row in enumerate(rows):
        name = row.get("id", row.get("idx"))
        try:
            item = parse(row, f"{number:05d}" + ("" if name is None else f":{name}"))
        except BadRowError as fault:
            yield fault
            continue
        if item is not None:
            yield item
