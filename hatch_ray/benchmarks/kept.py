"""What a run keeps of its benchmarks, so that a stopped one goes on and a kept one is scored again without a model.

RUN/benchmarks/<name>/settings.json       what the predictions depend on: model, prompt, sizes, files
RUN/benchmarks/<name>/predictions.jsonl   one reply a line (`results.Prediction`)
RUN/benchmarks/<name>/counts.json         rows of the files, asked, unusable and left out, each by reason; when finished
RUN/benchmarks/results.json, tables.md    figures and tables of the last command
"""

from __future__ import annotations

import json
from typing import Any

from hatch_ray.benchmarks.results import Prediction
from hatch_ray.run_folder import RunFolder, append_jsonl, read_jsonl, write_atomic, write_jsonl


class Kept:
    """One benchmark's folder in a run."""

    def __init__(self, run: RunFolder, name: str) -> None:
        self.path = run.path / "benchmarks" / name
        self.predictions_path = self.path / "predictions.jsonl"
        self.counts_path = self.path / "counts.json"

    def predictions(self) -> list[Prediction]:
        """All kept predictions. Raises ValueError with the number of a line that cannot be read."""
        try:
            return read_jsonl(self.predictions_path)
        except ValueError as error:
            raise ValueError(f"{error} to have it asked again") from None

    def append(self, rows: list[Prediction]) -> None:
        """Keep some more."""
        append_jsonl(self.predictions_path, rows)

    def replace(self, rows: list[Prediction]) -> None:
        """Keep these in place of all."""
        write_jsonl(self.predictions_path, rows)

    def counts(self) -> dict[str, Any]:
        """What was counted. Raises ValueError when the benchmark was not asked to its end."""
        if not self.counts_path.exists():
            raise ValueError(
                f"{self.path} holds no finished predictions; run `hatch eval RUN --benchmark {self.path.name}` first"
            )
        return json.loads(self.counts_path.read_text(encoding="utf-8"))

    def finish(self, counts: dict[str, Any]) -> None:
        """All rows were asked."""
        write_atomic(self.counts_path, json.dumps(counts, indent=2))

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Write the settings, or refuse to go on with predictions made under others.

        Raises ValueError naming each difference.
        """
        path = self.path / "settings.json"
        if path.exists() and self.predictions_path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            names = [name for name in sorted(before | settings) if before.get(name) != settings.get(name)]
            if names:
                changes = "; ".join(f"{name}: {before.get(name)!r} then, {settings.get(name)!r} now" for name in names)
                raise ValueError(
                    f"{self.path} holds predictions made otherwise ({changes}); remove that folder to ask again, "
                    "or use --rescore to score what is there"
                )
        write_atomic(path, json.dumps(settings, indent=2))
