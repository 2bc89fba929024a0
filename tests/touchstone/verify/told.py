"""A good run that can be told otherwise: entries and traces are changed, then every hash is made to fit again."""

from __future__ import annotations

import copy
import gzip
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from touchstone.canonical import canonical_json, sha256_hex
from touchstone.verify import again

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Json = dict[str, Any]


@dataclass
class Story:
    """A run folder in memory. `write` tells it again so consistently that only a lie in its content can be caught."""

    entries: list[Json]
    traces: dict[str, Json] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Story:
        lines = (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
        paths = (folder / "traces").iterdir()
        traces = {path.name.split(".")[0]: json.loads(gzip.decompress(path.read_bytes())) for path in paths}
        return cls([json.loads(line) for line in lines], traces)

    def copy(self) -> Story:
        return copy.deepcopy(self)

    def bodies(self, kind: str) -> list[Json]:
        return [entry["body"] for entry in self.entries if entry["kind"] == kind]

    @property
    def plan(self) -> Json:
        return self.bodies("plan")[0]

    def attempts(self, test_id: str) -> list[Json]:
        return [body for body in self.bodies("attempt") if body["test_id"] == test_id]

    def runs(self, test_id: str, arm: str | None = None) -> Iterator[Json]:
        for attempt in self.attempts(test_id):
            yield from (run for run in attempt["measurements"] if arm in {None, run["arm"]})

    def retrace(self, run: Json, change: Callable[[Json], None]) -> None:
        """Change the trace of a run, and name it by its new hash."""
        trace = copy.deepcopy(self.traces[run["trace_sha256"]])
        change(trace)
        run["trace_sha256"] = sha256_hex(canonical_json(trace))
        self.traces[run["trace_sha256"]] = trace

    def write(self, folder: Path) -> Path:
        """Write the story with a plan that hashes to its hash, a chain that holds and exactly the traces named."""
        (folder / "traces").mkdir(parents=True)
        old = self.plan["plan_sha256"]
        new = sha256_hex(canonical_json({key: value for key, value in self.plan.items() if key != "plan_sha256"}))
        previous, lines = "0" * 64, []
        for seq, entry in enumerate(self.entries):
            if entry["body"].get("plan_sha256") == old:
                entry["body"]["plan_sha256"] = new
            fields = {key: value for key, value in entry.items() if key != "sha256"}
            fields |= {"seq": seq, "previous_sha256": previous}
            previous = sha256_hex(canonical_json(fields))
            lines.append(canonical_json(fields | {"sha256": previous}) + b"\n")
        (folder / "ledger.jsonl").write_bytes(b"".join(lines))
        for attempt in self.bodies("attempt"):
            for run in [*attempt["measurements"], *filter(None, [attempt.get("repeated")])]:
                path = folder / "traces" / f"{run['trace_sha256']}.json.gz"
                path.write_bytes(gzip.compress(canonical_json(self.traces[run["trace_sha256"]]), mtime=0))
        return folder


class RemakingHere:
    """Stands for `touchstone.verify.remaking.Remaking`: made again in this process, where a test may replace parts."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments

    def result(self) -> Any:
        return again.made_again(*self._arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass
