"""Methods by name: which rule weights the tokens. Everything else of a method stands in its config sections."""

from __future__ import annotations

from vcrd_ray.config import Config, RatioWeighting, TeacherProbWeighting, UniformWeighting, Weighting

METHODS: dict[str, Weighting] = {
    "vcrd": RatioWeighting(),
    "vcrd_prob": TeacherProbWeighting(),
    "uniform": UniformWeighting(),
}
"""The paper's method, its PRM-free variant, and the same two divergences without weights (released DistiLLM-2)."""


def with_method(config: Config, name: str) -> Config:
    """The same run under another method; a weighting of the same type in the config keeps its settings."""
    weighting = METHODS[name]
    if config.distill.objective.weighting.type == weighting.type:
        return config
    objective = config.distill.objective.model_copy(update={"weighting": weighting})
    return config.model_copy(update={"distill": config.distill.model_copy(update={"objective": objective})})
