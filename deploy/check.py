"""What a cluster file offers to each role, and what configurations ask of it. Knows no cloud, and no cluster that runs.

    python -m deploy.check [--cluster cluster.yaml] [--config FILE ...]

Prints what each stage of each configuration asks and whether it fits, and what in the cluster file still has to be filled in.
Ends with 1 when something does not fit.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.placement import placement_table, pool_section, role_resources
from jobs.cli import load_config, run_main
from vcrd_ray.config import Config
from vcrd_ray.planning.node_types import NodeType, read_node_types

PLACEHOLDER = "CHANGE_ME"
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Actors of one role that a stage needs at the same time."""

    role: str
    count: int
    at_least: int | None = None
    """So many are enough to begin with; none: all."""
    resources: Mapping[str, float]
    """What each asks for."""

    @property
    def needed(self) -> int:
        """Without which the stage does not begin."""
        return self.count if self.at_least is None else self.at_least

    def __str__(self) -> str:
        each = ", ".join(f"{amount:g} {name}" for name, amount in self.resources.items())
        count = f"{self.count}" if self.needed == self.count else f"{self.needed} to {self.count}"
        return f"{count} x {self.role} ({each} each)"


def stages(config: Config) -> dict[str, list[Ask]]:
    """What each stage of the pipeline asks for at once. Stages follow one another."""

    def ask(role: str, count: int, resources: Mapping[str, float]) -> Ask:
        return Ask(role=role, count=count, resources=resources)

    student, engine = role_resources(config, "student"), role_resources(config, "teacher")
    asked = {
        # Both models respond at the same time, and Ray Data writes blocks beside them.
        "rollouts": [ask("teacher", 2 * config.teacher.replicas, engine), ask("data", 1, {"CPU": 1.0})],
        "distill": [
            Ask(
                role=role,
                count=count,
                at_least=None if role == "student" else pool_section(config, role).min_replicas,
                resources=resources,
            )
            for role, count, resources in placement_table(config)
        ],
        "evaluate": [ask("teacher", config.evaluate.replicas, engine)],
    }
    return asked if config.sft.skip else {"sft": [ask("student", config.student.ranks, student)], **asked}


def unplaced(asks: Iterable[Ask], types: Iterable[NodeType]) -> list[tuple[Ask, int]]:
    """The asks for which there is not room on all nodes together, with how many actors of each have found some."""
    nodes = [dict(t.resources) for t in types for _ in range(t.count)]
    # Actors that need no GPU must not fill the nodes that have some.
    nodes.sort(key=lambda node: node.get("GPU", 0))
    missing = []
    for ask in asks:
        placed = sum(_place(ask.resources, nodes) for _ in range(ask.count))
        if placed < ask.count:
            missing.append((ask, placed))
    return missing


def _place(asked: Mapping[str, float], nodes: Sequence[dict[str, float]]) -> bool:
    """Take what one actor asks from the first node that has it."""
    for node in nodes:
        if all(node.get(name, 0) >= amount for name, amount in asked.items()):
            for name, amount in asked.items():
                node[name] -= amount
            return True
    return False


def problems(config: Config, types: Sequence[NodeType]) -> list[str]:
    """One line for each ask that the cluster can never meet. What only joins later may find no room."""
    return [
        f"{stage} asks for {ask}, and there is room for {placed} at most"
        for stage, asks in stages(config).items()
        for ask, placed in unplaced((replace(ask, count=ask.needed) for ask in asks), types)
    ]


def placeholders(text: str) -> list[str]:
    """Lines that still have to be filled in, with their numbers."""
    lines = enumerate(text.splitlines(), start=1)
    return [f"line {number}: {line.strip()}" for number, line in lines if PLACEHOLDER in line.split("#")[0]]


def main(argv: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m deploy.check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cluster", type=Path, default=_ROOT / "cluster.yaml", metavar="FILE")
    shipped = sorted((_ROOT / "jobs" / "configs" / "paper").glob("*.yaml"))
    parser.add_argument("--config", type=Path, nargs="+", default=shipped, metavar="FILE")
    flags = parser.parse_args(argv)
    types = read_node_types(flags.cluster)
    for t in types:
        print(f"{t.count} x {t.name}: " + ", ".join(f"{amount:g} {name}" for name, amount in t.resources.items()))
    found = False
    for path in flags.config:
        config, _ = load_config("pipeline", "", ["--config", str(path)])
        print(f"\n{path.name}")
        for stage, asks in stages(config).items():
            print(f"  {stage}: " + ", ".join(map(str, asks)))
        for problem in problems(config, types):
            found = True
            print(f"  does not fit: {problem}")
    for line in placeholders(flags.cluster.read_text(encoding="utf-8")):
        print(f"\nto be filled in, {flags.cluster.name} {line}", end="")
    print()
    return int(found)


if __name__ == "__main__":
    run_main(main)
