"""A plan for a terminal, or as JSON for programs. Computes nothing."""

from __future__ import annotations

import dataclasses

from rich.console import Console
from rich.table import Table

from vcrd_ray.planning.estimate import Plan, RolePlan
from vcrd_ray.planning.memory import GIB, total

_SMALL = 0.05
"""GiB below which items are shown together."""


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
