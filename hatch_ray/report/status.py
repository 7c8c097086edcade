"""`hatch status`: RUN/status.json as a page of text."""

from __future__ import annotations

import time
from typing import Any

from hatch_ray.control import words_of


def status_text(status: dict[str, Any], ended: str | None) -> str:
    """What the driver said last; ended: why it is not live any more."""
    age = time.time() - status["time"]
    lines = [ended or f"live: process {status['pid']} on {status['host']}, heartbeat {words_of(age)} ago"]
    if status["stage"] is None:
        return "\n".join([*lines, "no stage has begun"])
    steps = f", step {status['step']} of {status['steps']}" if status["steps"] else ""
    eta = status.get("eta_seconds")
    left = f", about {words_of(eta)} left in this stage" if eta is not None and not ended else ""
    phase = f", now: {status['phase']}" if status.get("phase") and not ended else ""
    lines.append(f"stage: {status['stage']}{steps}{left}{phase}")
    lines += status.get("notes", [])
    if status.get("asks"):
        lines.append(f"asks: {', '.join(f'{name} {value}' for name, value in status['asks'].items())}")
    if "roles" not in status:
        return "\n".join(lines)
    lines.append(f"{'role':<9}{'alive':>6}{'wanted':>8}{'starting':>10}{'replaced':>10}{'queue':>7}  nodes")
    for role in status["roles"]:
        nodes = ", ".join(f"{host} ({count})" for host, count in role["nodes"].items())
        queue = status["queue"].get(role["role"], "")
        lines.append(
            f"{role['role']:<9}{role['alive']:>6}{role['wanted']:>8}{role.get('starting', ''):>10}"
            f"{role.get('replaced', ''):>10}{queue:>7}  {nodes}"
        )
        if role.get("trouble"):
            lines.append(f"{'':<9}the last that were asked for did not start: {role['trouble']}")
    waits = status["reward_wait_seconds"]
    facts = [
        f"weights in the engines: version {status['engines_version']}",
        f"staleness {status['staleness']:.2f}" if status.get("staleness") is not None else "",
        f"{status['tokens_per_s']:.0f} tokens/s" if status.get("tokens_per_s") else "",
        f"a reward waits {waits['p50']:.3g} s (p50), {waits['p95']:.3g} s (p95)" if waits else "",
        f"{status['set_aside']} samples set aside" if status["set_aside"] else "",
        f"{status['redrawn']:.0f} groups redrawn in the last step" if status.get("redrawn") is not None else "",
    ]
    return "\n".join([*lines, "; ".join(fact for fact in facts if fact)])
