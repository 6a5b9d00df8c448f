"""Classes that subclass a protocol implement all of it: none inherits a body that says `...`."""

import importlib

import pytest

from actors.pools.requests import Transport
from vcrd_ray.engines import Engine, VersionedEngine
from vcrd_ray.evaluation.answers import Benchmark
from vcrd_ray.evaluation.instruct.pace import Clock
from vcrd_ray.judges import Judge
from vcrd_ray.judges.packed import JudgeFormat
from vcrd_ray.judges.verdict_formats import VerdictFormat
from vcrd_ray.method.divergences import Divergence
from vcrd_ray.models.backend import Backend
from vcrd_ray.runs.tracking import Tracker
from vcrd_ray.training.on_policy.requests import AnswerSource, ResponseSource
from vcrd_ray.training.signals import Future, SignalSource
from vcrd_ray.training.trainer import Loop, StopRule, TrainingLog

for name in (
    "actors.pools.futures",
    "actors.pools.signals",
    "actors.pools.transport",
    "actors.ranks.log",
    "actors.ranks.stopping",
    "jobs.hosted",
    "vcrd_ray.engines.hf",
    "vcrd_ray.engines.vllm",
    "vcrd_ray.evaluation.code.benchmark",
    "vcrd_ray.evaluation.math.benchmark",
    "vcrd_ray.judges.batching",
    "vcrd_ray.judges.calibrated",
    "vcrd_ray.judges.implicit",
    "vcrd_ray.judges.oracle",
    "vcrd_ray.judges.qwen_prm",
    "vcrd_ray.judges.value_head",
    "vcrd_ray.models.backend.deepspeed",
    "vcrd_ray.models.backend.torch",
    "vcrd_ray.training.distiller",
    "vcrd_ray.training.on_policy.writer",
    "vcrd_ray.training.sft",
):
    importlib.import_module(name)

PROTOCOLS = [AnswerSource, Backend, Benchmark, Clock, Divergence, Engine, Future, Judge, JudgeFormat, ResponseSource]
PROTOCOLS += [SignalSource, Tracker, Transport, VerdictFormat, VersionedEngine, Loop, StopRule, TrainingLog]


def implementations(protocol: type) -> set[type]:
    below = {found for child in protocol.__subclasses__() for found in {child, *implementations(child)}}
    return {found for found in below if not found.__dict__.get("_is_protocol", False)}


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_no_class_inherits_a_stub_of_its_protocol(protocol):
    stubs = [name for name, member in vars(protocol).items() if callable(member) or isinstance(member, property)]
    public = [name for name in stubs if not name.startswith("_")]
    found = implementations(protocol)
    assert found and public
    inherited = [(c.__name__, name) for c in found for name in public if getattr(c, name) is getattr(protocol, name)]
    assert not inherited
