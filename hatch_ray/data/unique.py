"""Names that stand for one thing each, whatever the folders of strangers are called."""

from __future__ import annotations

from collections.abc import Hashable


class UniqueNames:
    """The name of each key: the one wanted where it is free, else with a number behind it. A key keeps its name."""

    def __init__(self) -> None:
        self._names: dict[Hashable, str] = {}
        self._taken: set[str] = set()

    def of(self, key: Hashable, *wanted: str) -> str:
        """The key's name: the first of `wanted` that no other key has, else the last of them with ~2, ~3, .. behind."""
        if key not in self._names:
            numbered = (f"{wanted[-1]}~{number}" for number in range(2, len(self._taken) + 3))
            name = next(name for name in (*wanted, *numbered) if name not in self._taken)
            self._names[key] = name
            self._taken.add(name)
        return self._names[key]

    def scene(self, source: str, scene: str) -> str:
        """The name of a scene, which no other scene of any source has."""
        flat = scene.replace("/", "_")
        return self.of((source, scene), flat, f"{source}-{flat}")
