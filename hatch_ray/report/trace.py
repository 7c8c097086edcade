"""`hatch trace`: RUN/spans.jsonl as a Chrome trace: one row a process, arrows along each group's way.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU (Trace Event Format); times
are microseconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hatch_ray.run_folder import RunFolder, read_jsonl, write_atomic

ROWS = {"driver": 1, "rollout": 2, "reward": 3, "learner": 4}
"""Roles from top to bottom, as Chrome's process ids."""
QUEUE = 1000
"""Thread id of the row that shows what waits for a role."""


def write_trace(run: RunFolder, out: Path | None, steps: int) -> str:
    """Write the trace of the last steps; one line for the user. Raises ValueError where nothing was recorded."""
    rows = read_jsonl(run.spans)[-steps:]
    if not rows:
        raise ValueError(f"{run.path} has no spans: only the GRPO stage records them, from its first step on")
    path = out or run.path / "trace.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    events = trace_events(rows)
    write_atomic(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
    spans = sum(event["ph"] == "X" for event in events)
    return f"trace: {path} ({len(rows)} steps, {spans} spans); open it in https://ui.perfetto.dev or chrome://tracing"


def trace_events(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Names of the rows, a slice for each span, another for what it waited in the queue, and a flow a group."""
    first = min(span[3] for row in rows for span in row["spans"])
    events: list[dict[str, Any]] = []
    threads: dict[tuple[int, int], str] = {}
    for row in rows:
        step: int = row["step"]
        flows: set[int] = set()
        for role, actor, name, began, ended, issued, groups in sorted(row["spans"], key=lambda span: span[3]):
            process = ROWS[role]
            threads[process, actor] = role if role in ("driver", "learner") else f"{role} {actor}"
            times = {"ts": _us(began - first), "dur": max(1, _us(ended - began))}
            args = {"step": step, "groups": groups or "all"}
            events.append({"ph": "X", "cat": role, "name": name, "pid": process, "tid": actor, "args": args} | times)
            if issued is not None and began > issued:
                threads[process, QUEUE] = f"waits for {role}"
                times = {"ts": _us(issued - first), "dur": max(1, _us(began - issued))}
                queue = {"ph": "X", "cat": "queue", "name": f"queue of step {step}", "pid": process, "tid": QUEUE}
                events.append(queue | {"args": args} | times)
            if name in ("generate", "reward", "learn") and role != "driver":
                for group in groups or sorted(flows):
                    kind = "s" if group not in flows else "f" if name == "learn" else "t"
                    flows.add(group)
                    flow = {"ph": kind, "cat": "group", "name": "group", "id": f"{step}.{group}", "bp": "e"}
                    events.append(flow | {"pid": process, "tid": actor, "ts": _us(began - first)})
    names = [
        {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": role}}
        for role, process in ROWS.items()
    ]
    names += [
        {"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": name}}
        for (process, thread), name in sorted(threads.items())
    ]
    return names + events


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
