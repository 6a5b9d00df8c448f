"""What a distillation will need, before it is started: memory of each role, nodes, time and cost. Loads no model.

Speeds and prices are those of the section `plan`; with --from, speeds are those of an earlier run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from jobs.cli import load_config
from vcrd_ray.config import Config
from vcrd_ray.planning.estimate import Plan, make_plan
from vcrd_ray.planning.node_types import read_offers
from vcrd_ray.planning.placing import RoleAsk
from vcrd_ray.planning.tables import as_json, show

_WIDTH = 110


def asks(config: Config) -> list[RoleAsk]:
    """What the actors of a distillation ask of the scheduler."""
    from actors.placement import placement_table

    return [RoleAsk(role=role, count=count, resources=each) for role, count, each in placement_table(config)]


def run(config: Config, *, cluster: Path | None = None, measured: Path | None = None) -> Plan:
    """The plan of the distillation that `config` describes."""
    return make_plan(config, asks(config), offers=None if cluster is None else read_offers(cluster), measured=measured)


def main(argv: list[str]) -> int:
    """See the module. 1 where something does not fit."""
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--cluster-file", type=Path, metavar="FILE", help="nodes and bill of this cluster file")
    extra.add_argument("--from", type=Path, dest="measured", metavar="DIR", help="take speeds of this distillation")
    extra.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    config, flags = load_config("plan", "What a distillation will need.", argv, extra=extra, any_key=False)
    plan = run(config, cluster=flags.cluster_file, measured=flags.measured)
    if flags.json:
        print(json.dumps(as_json(plan)))
    else:
        show(plan, Console(width=_WIDTH, highlight=False))
    missing = plan.placing is not None and bool(plan.placing.missing)
    return int(missing or any(role.fits is False for role in plan.roles))
