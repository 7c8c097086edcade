"""What each kind of process imports, and the CPU seconds of it: a short run is mostly imports.

python -m bench.imports
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from bench.measure import write_results


@dataclass(frozen=True)
class Role:
    """A kind of process: modules of ours that it imports, and packages that it must do without.

    pandas is not kept from the learner: Ray Train imports it to say that it is there.
    """

    modules: tuple[str, ...]
    without: tuple[str, ...]


HEAVY = ("torch", "transformers", "vllm", "trl", "pandas", "datasets")
ROLES = {
    "hatch --help": Role(("hatch_ray.cli",), (*HEAVY, "ray", "scipy", "PIL")),
    "driver, up to Ray's start": Role(("actors.stages.recipe",), HEAVY),
    "reward actor": Role(("actors.reward.verifier",), HEAVY),
    "boards and desk": Role(("actors.experience.queues",), (*HEAVY, "scipy")),
    "learner worker": Role(
        ("actors.stages.pasta", "actors.stages.sft", "actors.learner.worker"),
        ("vllm", "trl", "datasets", "serve", "actors.weights.parity"),
    ),
    "rollout engine": Role(
        ("actors.rollout.engine", "vllm"),
        ("trl", "pandas", "datasets", "ray.train", "ray.serve", "actors.weights.parity"),
    ),
    "client of the service": Role(("serve.client",), (*HEAVY, "ray")),
}

PROBE = """
import json, resource, sys
from hatch_ray.environment import prepare_environment
prepare_environment()
for name in json.loads(sys.argv[1]):
    __import__(name)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"cpu_seconds": used.ru_utime + used.ru_stime, "modules": sorted(sys.modules)}))
"""


def imports_of(role: Role) -> tuple[float, set[str]]:
    """CPU seconds from the start of a new process, and the names of all that it has imported."""
    words = [sys.executable, "-c", PROBE, json.dumps(role.modules)]
    found = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."})
    answer: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return answer["cpu_seconds"], set(answer["modules"])


def main() -> None:
    """The least of three times for each role."""
    rows = []
    for name, role in ROLES.items():
        tries = [imports_of(role) for _ in range(3)]
        rows.append({"role": name, "cpu_seconds": min(seconds for seconds, _ in tries), "modules": len(tries[0][1])})
        print(f"{name:<28} {rows[-1]['cpu_seconds']:6.2f} s  {rows[-1]['modules']:6} modules", flush=True)
    write_results("imports", {"rows": rows})


if __name__ == "__main__":
    main()
