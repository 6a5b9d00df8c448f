"""What lies behind an error that Ray wrapped."""

from __future__ import annotations

from vcrd_ray.errors import VcrdError


def causes_of(failure: BaseException | None) -> list[BaseException]:
    """An error and what Ray wrapped in it."""
    found: list[BaseException] = []
    while failure is not None and failure not in found:
        found.append(failure)
        inner = getattr(failure, "_base_exc", None) or getattr(failure, "cause", None) or failure.__cause__
        failure = inner if isinstance(inner, BaseException) else None
    return found


def raised_on_purpose(failure: BaseException) -> VcrdError | None:
    """The error of this project's that lies behind one of Ray's; None where there is none."""
    return next((cause for cause in causes_of(failure) if isinstance(cause, VcrdError)), None)
