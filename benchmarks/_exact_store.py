"""Results in a CSV file that a run which was stopped goes on with."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Store:
    """Rows of keys and figures; each is made once and written at once.

    Args:
        path: the file, made where it is missing.
        keys: columns that say what was run; figures: columns that say what came out.
    """

    def __init__(self, path: Path, keys: tuple[str, ...], figures: tuple[str, ...]) -> None:
        self.path, self.keys, self.figures = path, keys, figures
        self.known: dict[tuple[str, ...], dict[str, float]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            self._write([*keys, *figures])
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                self.known[self._key(row)] = {name: float(row[name]) for name in figures}

    def _key(self, row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in self.keys)

    def _write(self, cells: list[Any]) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(cells)

    def get(self, **key: Any) -> dict[str, float] | None:
        """The figures of a row, or None."""
        return self.known.get(self._key(key))

    def make(self, call: Callable[[], dict[str, float]], **key: Any) -> dict[str, float]:
        """The figures of a row, from the file or from `call`."""
        known = self.get(**key)
        if known is None:
            made = call()
            known = {name: float(made[name]) for name in self.figures}
            cells = [f"{known[name]:.9g}" for name in self.figures]
            self._write([*self._key(key), *cells])
            self.known[self._key(key)] = known
        return known

    def rows(self, **key: Any) -> list[dict[str, Any]]:
        """All rows whose keys are those given, as one dict each."""
        wanted = {name: str(value) for name, value in key.items()}
        out = []
        for values, figures in self.known.items():
            row = dict(zip(self.keys, values, strict=True))
            if wanted.items() <= row.items():
                out.append({**row, **figures})
        return out
