"""Metrics: one table for code, docs and dashboard, and what Ray's agent really exports."""

import json
import re
import time
import urllib.request

from actors.runtime.metrics import TABLE
from actors.runtime.status import Live
from hatch_ray.config_sections import DeadlinesConfig
from hatch_ray.run_folder import RunFolder, append_jsonl
from hatch_ray.systems.hatch.system import Hatch

EXPORTED = {"gauge": {""}, "counter": {"_total"}, "histogram": {"_sum", "_count", "_bucket"}}
"""What Prometheus sees of a metric, after its name."""


def test_the_table_of_the_docs_is_the_codes(repository):
    page = (repository / "docs" / "observability.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `ray_")]
    assert rows == [
        f"| `ray_{m.name}` | {m.kind} | {', '.join(f'`{tag}`' for tag in m.tags)} | {m.meaning} |" for m in TABLE
    ]


def test_every_panel_shows_a_metric_of_the_table_and_every_metric_has_a_panel(repository):
    board = json.loads((repository / "grafana" / "hatch.json").read_text(encoding="utf-8"))
    known = {f"ray_{m.name}{end}": m.name for m in TABLE for end in EXPORTED[m.kind]}
    tags = {m.name: {"run", *m.tags} for m in TABLE}
    shown = set()
    for panel in board["panels"]:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            names = re.findall(r"ray_\w+", target["expr"])
            assert names and set(names) <= set(known), f"{panel['title']}: {names}"
            legend = re.findall(r"{{(\w+)}}", target["legendFormat"])
            assert set(legend) <= set.intersection(*(tags[known[name]] for name in names)), panel["title"]
            shown |= {known[name] for name in names}
    assert shown == {m.name for m in TABLE}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


STATUS = {
    "stage": "grpo", "step": 3, "steps": 9, "eta_seconds": 12.5, "engines_version": 3, "queue": {"reward": 5},
    "reward_wait_seconds": {"p50": 0.1, "p95": 0.7}, "roles": [{"role": "reward", "alive": 2, "wanted": 4}],
}  # fmt: skip
STEP = {
    "tokens": 100.0, "seconds": 2.0, "seconds_learn": 1.5, "reward_total": 0.5, "staleness": 1.0, "loss": 0.25,
    "groups": 2.0, "redrawn_groups": 1.0, "asks_bin": 3.0,
}  # fmt: skip


def test_ray_exports_every_name_of_the_table(ray_cluster, tmp_path):
    run = RunFolder(tmp_path)
    append_jsonl(run.recoveries, [{"what": "driver"}])  # of an earlier start, which has counted it
    live = Live(run, [stage.name for stage in Hatch.stages], DeadlinesConfig())
    append_jsonl(run.recoveries, [{"what": "learner worker"}, {"what": "rollout engine"}])
    live.write()
    live.write()
    metrics = live.metrics
    metrics.beat(STATUS)
    metrics.step(STEP)
    metrics.step(STEP)
    wanted = {f"ray_{m.name}{end}" for m in TABLE for end in EXPORTED[m.kind]}
    node = ray_cluster.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: dict[str, str] = {}
    end = time.monotonic() + 60
    while time.monotonic() < end and not wanted <= found.keys():
        time.sleep(1)
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        rows = [line for line in text.splitlines() if f'run="{run.path}"' in line]
        found = {re.split(r"[{ ]", row)[0]: row for row in rows}
    assert wanted - found.keys() == set()
    assert float(found["ray_hatch_groups_total"].split()[-1]) == 4
    assert float(found["ray_hatch_lost_total"].split()[-1]) == 2
    assert float(found["ray_hatch_phase_seconds_count"].split()[-1]) == 2
    assert 'phase="learn"' in found["ray_hatch_phase_seconds_sum"]
