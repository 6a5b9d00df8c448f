"""What lies behind an error that Ray wrapped."""

from __future__ import annotations

import re

from vcrd_ray import errors
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
    """The error of this project's that lies behind one of Ray's; None where there is none.

    Ray Data's own error leaves its cause behind between processes, and shows it in its text alone.
    """
    for cause in causes_of(failure):
        if isinstance(cause, VcrdError):
            return cause
    shown = re.findall(r"^vcrd_ray\.errors\.(\w+): (.+)$", str(failure), flags=re.MULTILINE)
    return getattr(errors, shown[-1][0])(shown[-1][1]) if shown else None
