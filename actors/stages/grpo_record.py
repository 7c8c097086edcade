"""What a GRPO run writes down of its steps, and what a resumed one knows of those before.

RUN/ledger.jsonl, samples/grpo.jsonl, experience.jsonl: before the learner trains a step
RUN/metrics.jsonl: once it has
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.experience.batch import Batch
from actors.experience.ledger import Ledger
from actors.learner.worker import REPORTS
from hatch_ray.config import Config
from hatch_ray.data.store import Sampler
from hatch_ray.learning.health import Health
from hatch_ray.run_folder import ASKS, RunFolder, append_jsonl, drop_steps, read_jsonl
from hatch_ray.systems.base import System
from hatch_ray.systems.words import standing_in_words

STAGE = "grpo"


class Record:
    """The record of one run. `latest`: the metrics of the last step that was learned."""

    def __init__(
        self, config: Config, run: RunFolder, system: System, sampler: Sampler, first: int, checkpoint: Path | None
    ) -> None:
        """Drops what is known of step `first` and those beyond; tells the sampler and the health of those before.

        checkpoint: the folder that the run goes on from.
        """
        self.config, self.run, self.system, self.sampler = config, run, system, sampler
        self.ledger = Ledger(run.ledger)
        self.ledger.restore(first)
        run.forget_after(STAGE, first)
        for path in (run.samples(STAGE), run.experience):
            drop_steps(path, first)
        for step, groups in self.ledger.told().items():
            sampler.observe(step, groups)
        self.health = Health(config.grpo, system.rates())
        self.latest: dict[str, float] = {}
        for row in self._logged():
            self.health.add(row["step"], row)
        self._known = {row.pop("step"): row for row in read_jsonl(run.experience)}
        """The driver's metrics of the steps whose learner's metrics are not logged yet, and all before them."""
        if checkpoint is not None:
            self._log_missing(checkpoint)

    def _logged(self) -> list[dict[str, Any]]:
        return [row for row in read_jsonl(self.run.metrics_path) if row["stage"] == STAGE]

    def _log_missing(self, checkpoint: Path) -> None:
        """A learner that died right after a checkpoint has not reported the last steps behind it: they lie in it."""
        last = max((row["step"] for row in self._logged()), default=0)
        for row in read_jsonl(checkpoint / REPORTS):
            if row["step"] >= last:
                self.learned(row.pop("step"), row)

    def sampled(self, batch: Batch, seconds: dict[str, float]) -> None:
        """What a step earned, before the learner trains it; the sampler is told."""
        rows = batch.ledger_rows(self.config.grpo.prompts_per_step)
        self._known[batch.step] = batch.metrics() | seconds | self.standing()
        append_jsonl(self.run.samples(STAGE), batch.sample_rows())
        append_jsonl(self.run.experience, [{"step": batch.step} | self._known[batch.step]])
        self.ledger.append(rows)
        self.sampler.observe(batch.step, rows)

    def standing(self) -> dict[str, float]:
        """What the sampler asks now, as metrics; nothing of one that does not say (`System.ladders`)."""
        if not self.system.ladders():
            return {}
        sampler: Any = self.sampler
        return {f"{ASKS}{name}": value for name, value in sampler.standing().items()}

    def learned(self, step: int, report: dict[str, float]) -> dict[str, float]:
        """One row of metrics.jsonl, which is returned: what the driver knows of a step, and what the learner does."""
        metrics = self._known.pop(step, {}) | report
        metrics = {name: value for name, value in metrics.items() if name not in ("time_began", "time_ended")}
        self.latest = metrics
        warnings = self.health.add(step + 1, metrics)
        self.run.log(STAGE, step + 1, metrics | {"tokens_per_s": metrics["tokens"] / metrics["seconds"]}, warnings)
        for text in warnings:
            print(f"{STAGE}: step {step + 1}: {text}", flush=True)
        return metrics

    def asks(self) -> dict[str, str]:
        """The same for people, by name."""
        return standing_in_words(self.system.ladders(), self.standing())

    def rise(self) -> str:
        """The mean reward terms that weigh something, of the first and the last tenth of the steps, in words."""
        rows = self._logged()
        tenth = max(1, len(rows) // 10)
        parts = []
        for name in (name for name, weight in self.system.weights().items() if weight):
            before, after = (_known(f"reward_{name}", part) for part in (rows[:tenth], rows[-tenth:]))
            if before and after:
                parts.append(f"{name} {sum(before) / len(before):.3f} -> {sum(after) / len(after):.3f}")
        return ", ".join(parts)


def _known(name: str, rows: Sequence[dict[str, Any]]) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]
