"""Settings of tests that throw anything at a reader: the same examples each time, few enough to take seconds."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings


def bounded(max_examples: int) -> settings:
    """So many examples; what fails is shown as it was found, not made small."""
    return settings(
        max_examples=max_examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
    )
