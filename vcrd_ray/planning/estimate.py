"""Config -> the whole plan: roles, memory, time, bill, and what was assumed. Knows no Ray and prints nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from vcrd_ray.config import Config
from vcrd_ray.config.models import ImplicitJudgeSection, JudgePool, ModelJudge
from vcrd_ray.config.plan import HardwareSection
from vcrd_ray.config.yaml_files import read_yaml
from vcrd_ray.errors import ConfigError
from vcrd_ray.planning import host, memory, rates
from vcrd_ray.planning.hardware import gpu_bytes
from vcrd_ray.planning.memory import Item
from vcrd_ray.planning.placing import Bill, Offer, Placing, RoleAsk, bill, place
from vcrd_ray.planning.rates import Shapes
from vcrd_ray.planning.shapes import read_shape
from vcrd_ray.planning.simulate import ServiceTimes, Simulated, Sizes, simulate
from vcrd_ray.runs.files import read_jsonl


@dataclass(frozen=True, kw_only=True)
class RolePlan:
    """One role in one stage."""

    role: str
    stage: str
    count: int
    gpus: float
    """Of each actor."""
    items: list[Item]
    """Memory of one actor on its GPU, or in host memory where it has none. One GPU of several that share an engine."""
    device_bytes: int | None
    """What one actor may take of a GPU; None: not known, or no GPU."""
    host_bytes: int
    nodes: dict[str, int] | None
    """Node type -> nodes with such an actor; None without a cluster file."""

    @property
    def fits(self) -> bool | None:
        """Whether the estimate is below the device's memory; None where that is not known."""
        return None if self.device_bytes is None else memory.total(self.items) <= self.device_bytes


@dataclass(frozen=True, kw_only=True)
class TimePlan:
    """The distillation in time."""

    times: ServiceTimes
    source: str
    simulated: Simulated
    num_updates: int | None
    """None: the number of pairs is not known."""

    @property
    def hours(self) -> float | None:
        """Of all updates."""
        return None if self.num_updates is None else self.num_updates * self.simulated.update_s / 3600


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a plan says."""

    roles: list[RolePlan]
    in_flight: host.InFlight
    time: TimePlan | None
    no_time_because: str | None
    placing: Placing | None
    bill: Bill | None
    assumptions: list[str]


def read_shapes(config: Config) -> Shapes:
    """Sizes of all models of a distillation.

    Raises:
        ModelError: those of one are not known.
    """
    judge = config.judge if config.distill.objective.needs_judge else None
    path = judge.path if isinstance(judge, ModelJudge) else None
    reference = judge.reference if isinstance(judge, ImplicitJudgeSection) else None
    return Shapes(
        student=read_shape(config.student.path, config.plan),
        teacher=read_shape(config.teacher.path, config.plan),
        judge=None if path is None else read_shape(path, config.plan),
        reference=None if reference is None else read_shape(reference, config.plan),
    )


def make_plan(
    config: Config, asks: Sequence[RoleAsk], *, offers: Sequence[Offer] | None, measured: Path | None
) -> Plan:
    """The plan of a distillation.

    Args:
        asks: what its actors ask of the scheduler.
        offers: node types that there can be; None: no nodes and no bill.
        measured: folder of an earlier distillation whose service times are taken; None: they are assumed.

    Raises:
        ModelError: the sizes of a model are not known.
        ConfigError: `measured` is no distillation.
    """
    shapes = read_shapes(config)
    placing = None if offers is None else place(asks, offers)
    roles = [_role(config, ask, shapes, placing) for ask in asks]
    if not config.sft.skip:
        roles.insert(0, _sft_role(config, asks[0], shapes, placing))
    time, why = None, None
    try:
        time = _time(config, shapes, measured)
    except ConfigError as error:
        if measured is not None:
            raise
        why = str(error)
    hours = None if time is None else time.hours
    return Plan(
        roles=roles,
        in_flight=host.in_flight(config, shapes.teacher),
        time=time,
        no_time_because=why,
        placing=placing,
        bill=None if placing is None else bill(placing.nodes, config.plan.prices, hours=hours),
        assumptions=_assumptions(config, shapes, time),
    )


def role_items(config: Config, role: str, shapes: Shapes) -> list[Item]:
    """Device memory of one actor of a distillation."""
    match role:
        case "student":
            return memory.distill_items(config, shapes.student, shapes.teacher)
        case "teacher":
            return memory.teacher_items(config, shapes.teacher)
        case "rollout":
            return memory.rollout_items(config, shapes.student)
    return [] if shapes.judge is None else memory.judge_items(config, shapes.judge, shapes.reference)


def device_bytes(hardware: HardwareSection, gpus: float) -> int | None:
    """What one actor may take of one GPU: all of it, or its share of one."""
    whole = gpu_bytes(hardware) if gpus else None
    return None if whole is None else int(whole * min(1.0, gpus))


def _role(config: Config, ask: RoleAsk, shapes: Shapes, placing: Placing | None) -> RolePlan:
    hardware: HardwareSection = getattr(config.plan, ask.role)
    gpus = ask.resources.get("GPU", 0.0)
    return RolePlan(
        role=ask.role,
        stage="distill",
        count=ask.count,
        gpus=gpus,
        items=role_items(config, ask.role, shapes),
        device_bytes=device_bytes(hardware, gpus),
        host_bytes=host.host_bytes(config, ask.role, shapes),
        nodes=None if placing is None else placing.by_role[ask.role],
    )


def _sft_role(config: Config, ask: RoleAsk, shapes: Shapes, placing: Placing | None) -> RolePlan:
    return RolePlan(
        role="student",
        stage="sft",
        count=ask.count,
        gpus=config.student.gpus_per_rank,
        items=memory.sft_items(config, shapes.student),
        device_bytes=device_bytes(config.plan.student, config.student.gpus_per_rank),
        host_bytes=host.host_bytes(config, "student", shapes),
        nodes=None if placing is None else placing.by_role["student"],
    )


def _time(config: Config, shapes: Shapes, measured: Path | None) -> TimePlan:
    run, pool = config.distill, config.student
    if measured is None:
        times, source = rates.assumed_times(config, shapes), "assumed speeds"
    else:
        rows, earlier = read_measured(measured)
        times, source = rates.measured_times(rows, measured=earlier, config=config, shapes=shapes), f"{measured}"
    judge: JudgePool = config.judge
    sizes = Sizes(
        ranks=pool.ranks,
        num_micro=run.batch_size // (run.micro_batch_size * pool.ranks),
        teachers=config.teacher.replicas,
        judges=judge.replicas,
        overlap=run.overlap,
        prefetch=run.prefetch,
    )
    updates = config.plan.simulated_updates
    simulated = simulate(
        times,
        sizes,
        num_updates=updates,
        warm_up=updates // 5,
        variation=config.plan.variation,
        seed=config.run.seed,
    )
    return TimePlan(times=times, source=source, simulated=simulated, num_updates=num_updates(config))


def num_updates(config: Config) -> int | None:
    """Of the distillation, if no pair is rejected; None where the number of pairs is not known."""
    run, pairs = config.distill, config.plan.num_pairs
    if run.num_updates is not None:
        return run.num_updates
    if pairs is None:
        count = config.rollouts.prompts.count
        pairs = None if count is None else count * config.rollouts.samples
    return None if pairs is None else max(1, int(run.epochs * pairs) // run.batch_size)


def read_measured(directory: Path) -> tuple[list[Mapping[str, float]], Config]:
    """Metrics and configuration of an earlier distillation.

    Raises:
        ConfigError: there is none.
    """
    try:
        written = read_yaml(directory / "config.yaml")
        rows: list[Mapping[str, float]] = list(read_jsonl(directory / "metrics.jsonl"))
    except (ConfigError, FileNotFoundError) as error:
        missing = f"no {error.filename}" if isinstance(error, FileNotFoundError) else str(error)
        raise ConfigError(f"--from {directory}: {missing}; give the folder of a run, RUN/distill") from None
    try:
        return rows, Config.model_validate(written)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"--from {directory}: its configuration is none of this version"
            f" ({'.'.join(map(str, first['loc']))}: {first['msg']}); give a run of this one"
        ) from None


def _assumptions(config: Config, shapes: Shapes, time: TimePlan | None) -> list[str]:
    section = config.plan
    models = {config.student.path: shapes.student, config.teacher.path: shapes.teacher}
    if shapes.judge is not None and isinstance(config.judge, ModelJudge):
        models[config.judge.path] = shapes.judge
    said = [f"{path}: {shape.parameters:,} parameters ({shape.source})" for path, shape in models.items()]
    said.append(f"memory at distill.max_length {config.distill.max_length} and full micro-batches")
    if time is None:
        return said
    if time.source == "assumed speeds":
        said.append(
            f"{section.prompt_tokens} prompt and {section.response_tokens} response tokens on average, both models propose"
            f" the same token at {section.agreement:.0%} of the positions"
        )
        for role in ("student", "teacher", "judge"):
            hardware: HardwareSection = getattr(section, role)
            said.append(
                f"{role}: {hardware.utilization:.0%} of the peak of {hardware.gpu or f'{hardware.tflops} TFLOP/s'}"
            )
        said.append(f"{section.network_gbit_s:g} Gbit/s between nodes")
    said.append(f"service times vary by {section.variation:.0%}")
    if config.rollouts.refresh.on:
        said.append("waiting for regenerated responses (rollouts.refresh) is not simulated")
    return said
