"""What a distillation will need, before it is started: memory of each role, nodes, time and cost. Loads no model.

Speeds and prices are those of the section `plan`; with --from, speeds are those of an earlier run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jobs.cli import load_config
from vcrd_ray.config import Config
from vcrd_ray.planning.estimate import Plan, RolePlan, make_plan
from vcrd_ray.planning.memory import GIB, total
from vcrd_ray.planning.placing import Offer, RoleAsk

_WIDTH = 110
_SMALL = 0.05
"""GiB below which items are shown together."""


def asks(config: Config) -> list[RoleAsk]:
    """What the actors of a distillation ask of the scheduler."""
    from actors.placement import placement_table

    return [RoleAsk(role=role, count=count, resources=each) for role, count, each in placement_table(config)]


def read_offers(path: Path) -> list[Offer]:
    """Node types of a cluster file; the head is up whatever runs.

    Raises:
        ConfigError: it is no cluster file.
    """
    from vcrd_ray.errors import ConfigError
    from vcrd_ray.planning.node_types import read_node_types

    if not path.is_file():
        raise ConfigError(f"--cluster-file {path}: no such file; the shipped one is cluster.yaml")
    types = read_node_types(path)
    return [
        Offer(name=t.name, count=t.count, always=1 if t.name == "head" else 0, resources=t.resources) for t in types
    ]


def run(config: Config, *, cluster: Path | None = None, measured: Path | None = None) -> Plan:
    """The plan of the distillation that `config` describes."""
    return make_plan(config, asks(config), offers=None if cluster is None else read_offers(cluster), measured=measured)


def as_json(plan: Plan) -> dict[str, object]:
    """The plan for programs: all its fields, and the sums that people are shown."""
    content = dataclasses.asdict(plan)
    for written, role in zip(content["roles"], plan.roles, strict=True):
        written |= {"total_bytes": total(role.items), "fits": role.fits}
    if plan.time is not None:
        content["time"]["hours"] = plan.time.hours
    return content


def show(plan: Plan, console: Console) -> None:
    """The plan for people."""
    console.print(_role_table(plan))
    for role in plan.roles:
        console.print(f"{role.stage} {role.role}: {_items(role)}", soft_wrap=True)
        if role.fits is False:
            console.print(
                f"[bold red]does not fit[/]: {role.stage} {role.role} needs {_gib(total(role.items))} GiB of"
                f" {_gib(role.device_bytes)}"
            )
    flight = plan.in_flight
    if flight.answer_bytes:
        console.print(
            f"\nobject store: {flight.answers} answers of at most {_gib(flight.answer_bytes)} GiB a rank ="
            f" {_gib(flight.per_rank)} GiB a rank, {_gib(flight.all_ranks)} GiB on the teachers' nodes together"
        )
    _show_time(plan, console)
    _show_bill(plan, console)
    console.print("\nassumed:")
    for line in plan.assumptions:
        console.print(f"  {line}", soft_wrap=True)


def _role_table(plan: Plan) -> Table:
    table = Table(title="roles")
    for column in ("stage", "role", "actors", "GPUs each", "GiB each", "of GiB", "host GiB each", "nodes"):
        table.add_column(column, justify="left" if column in ("stage", "role", "nodes") else "right")
    for role in plan.roles:
        nodes = "" if role.nodes is None else ", ".join(f"{count} x {name}" for name, count in role.nodes.items())
        need, has = _gib(total(role.items)), "" if role.device_bytes is None else _gib(role.device_bytes)
        table.add_row(
            *(role.stage, role.role, str(role.count), f"{role.gpus:g}", need, has, _gib(role.host_bytes), nodes)
        )
    return table


def _items(role: RolePlan) -> str:
    large = [item for item in role.items if item.bytes >= _SMALL * GIB]
    small = total(role.items) - total(large)
    shown = [f"{item.what} {_gib(item.bytes)}" for item in large]
    return " + ".join([*shown, *([f"less than {_SMALL} each: {small / GIB:.3f}"] if small else [])]) + " GiB"


def _show_time(plan: Plan, console: Console) -> None:
    if plan.time is None:
        console.print(f"\nno time: {plan.no_time_because}", soft_wrap=True)
        return
    found, times = plan.time.simulated, plan.time.times
    console.print(
        f"\ntime ({plan.time.source}): an update takes {found.update_s:.3g} s; of these a rank waits"
        f" {found.wait_teacher_s:.2g} s for the teacher and {found.wait_judge_s:.2g} s for the judge"
        f" ({(found.wait_teacher_s + found.wait_judge_s) / found.update_s:.1%});"
        f" teachers work {found.teacher_busy:.0%} of the time, judges {found.judge_busy:.0%}",
        soft_wrap=True,
    )
    console.print(
        f"  a micro-batch: forward {times.forward_s:.2g} s, loss {times.loss_s:.2g}, backward {times.backward_s:.2g},"
        f" teacher {times.teacher_s:.2g}, judge {times.judge_teacher_s:.2g} + {times.judge_student_s:.2g};"
        f" step {times.step_s:.2g}",
        soft_wrap=True,
    )
    if plan.time.hours is None:
        console.print("  length of the run: not known; set plan.num_pairs or distill.num_updates")
    else:
        console.print(f"  {plan.time.num_updates} updates: {plan.time.hours:.2f} hours")


def _show_bill(plan: Plan, console: Console) -> None:
    if plan.placing is None or plan.bill is None:
        return
    for role, count in plan.placing.missing.items():
        console.print(f"[bold red]no room[/] for {count} x {role} on this cluster")
    nodes = ", ".join(f"{count} x {name}" for name, count in plan.placing.nodes.items())
    console.print(f"\nnodes during distillation: {nodes}")
    if plan.bill.unpriced:
        console.print(f"  no price for {', '.join(plan.bill.unpriced)}: set plan.prices")
    elif plan.bill.run is None:
        console.print(f"  {plan.bill.per_hour:.2f} an hour, in the currency of plan.prices")
    else:
        console.print(
            f"  {plan.bill.per_hour:.2f} an hour, {plan.bill.run:.2f} for the distillation, in the currency of plan.prices"
        )


def _gib(amount: int | None) -> str:
    return "?" if amount is None else f"{amount / GIB:.1f}"


def main(argv: list[str]) -> int:
    """See the module. 1 where something does not fit."""
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--cluster-file", type=Path, metavar="FILE", help="nodes and bill of this cluster file")
    extra.add_argument("--from", type=Path, dest="measured", metavar="DIR", help="take speeds of this distillation")
    extra.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    config, flags = load_config("plan", "What a distillation will need.", argv, extra=extra)
    plan = run(config, cluster=flags.cluster_file, measured=flags.measured)
    if flags.json:
        print(json.dumps(as_json(plan)))
    else:
        show(plan, Console(width=_WIDTH, highlight=False))
    missing = plan.placing is not None and bool(plan.placing.missing)
    return int(missing or any(role.fits is False for role in plan.roles))
