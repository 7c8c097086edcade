"""The house: a file imports from floors below its own, and no files import each other in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from hatch_ray.systems import KNOWN

FLOORS = (
    "hatch_ray hatch_ray.disk hatch_ray.environment hatch_ray.manifest hatch_ray.sample hatch_ray.system_errors "
    "hatch_ray.systems hatch_ray.torchvision_mend actors",
    "hatch_ray.doctor hatch_ray.geometry hatch_ray.run_folder",
    "hatch_ray.config_sections hatch_ray.control hatch_ray.protocol",
    "hatch_ray.config hatch_ray.rewards hatch_ray.storage",
    "hatch_ray.cluster_address hatch_ray.config_reference hatch_ray.data hatch_ray.model hatch_ray.planning "
    "hatch_ray.run_version hatch_ray.sinks",
    "hatch_ray.systems.base actors.runtime",
    "hatch_ray.evaluation hatch_ray.learning actors.weights",
    "hatch_ray.report hatch_ray.systems.hatch hatch_ray.systems.matching "
    "hatch_ray.systems.viewpoint actors.reward actors.rollout",
    "hatch_ray.benchmarks",
    "hatch_ray.ablation actors.experience serve",
    "actors.learner",
    "actors.stages",
    "actors.commands",
    "hatch_ray.cli_shared",
    "hatch_ray.cli_data",
    "hatch_ray.cli",
)
"""From the ground up. `hatch_ray.systems` finds a system by its name; `.base` is what every system is made of."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
OURS = ("hatch_ray", "actors", "serve")


def module_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room that a module lies in: serve is one, hatch_ray and actors have one a folder or file."""
    parts = module.split(".")
    if parts[0] == "serve":
        return "serve"
    if parts[:2] == ["hatch_ray", "systems"] and len(parts) > 2:
        return f"hatch_ray.systems.{parts[2]}" if parts[2] in KNOWN else "hatch_ray.systems.base"
    return ".".join(parts[:2])


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Our modules that a file imports, and whether it does as soon as it is imported itself; not those for types."""

    def look(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.ImportFrom) and child.module and child.module.split(".")[0] in OURS:
                yield child.module, at_once
                yield from ((f"{child.module}.{name.name}", at_once) for name in child.names)
            elif isinstance(child, ast.Import):
                yield from ((name.name, at_once) for name in child.names if name.name.split(".")[0] in OURS)
            yield from look(child, at_once and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    yield from look(ast.parse(path.read_text(encoding="utf-8")), True)


@pytest.fixture(scope="module")
def files(repository: Path) -> dict[str, Path]:
    """Every module of the house."""
    return {module_of(path, repository): path for top in OURS for path in (repository / top).rglob("*.py")}


def test_every_file_has_a_floor_and_imports_from_those_below(files: dict[str, Path]) -> None:
    homeless = {room_of(module) for module in files} - FLOOR.keys()
    assert not homeless, f"give {', '.join(sorted(homeless))} a floor"
    up = [
        f"{module} (floor {FLOOR[room_of(module)]}) imports {imported} (floor {FLOOR[room_of(imported)]})"
        for module, path in files.items()
        for imported, _ in imports_of(path)
        if imported in files and room_of(imported) != room_of(module)
        if FLOOR[room_of(imported)] >= FLOOR[room_of(module)]
    ]
    assert not up, "\n".join(up)


def test_no_files_import_each_other_in_a_circle(files: dict[str, Path]) -> None:
    graph = {
        module: {imported for imported, at_once in imports_of(path) if at_once and imported in files} - {module}
        for module, path in files.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle
