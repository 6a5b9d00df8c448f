"""Which variables of this environment may travel with a job, and that no secret does unseen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from jobs.ops.submission import SubmissionError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_NAME = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY|(^|_)(KEY|PASS|AUTH|PAT)(_|$)", re.IGNORECASE
)
_SECRET_VALUE = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_PLACE = re.compile(r"_(PATH|FILE|DIR|MODE)$", re.IGNORECASE)
# Shorter values stand in innocent text by chance.
_MIN_SECRET = 8


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable seems to hold a secret itself, and not the place of one."""
    if _SECRET_VALUE.search(value):
        return True
    return bool(_SECRET_NAME.search(name)) and not _PLACE.search(name)


def chosen_variables(names: Iterable[str], visible: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Variables of this environment to send: `names`, and `visible` ones that may be secrets all the same.

    Raises:
        SubmissionError: a value instead of a name, a variable that is not set, a secret that would become readable.
    """
    visible = tuple(visible)
    chosen: dict[str, str] = {}
    for name in (*names, *visible):
        if not _VARIABLE.fullmatch(name):
            raise SubmissionError(
                f"--env {name.split('=')[0]}: give the name of a variable alone; its value is taken from this environment,"
                " so that it stands in no command line"
            )
        if name not in environ:
            raise SubmissionError(f"--env {name}: not set here; export it first")
        if looks_secret(name, environ[name]) and name not in visible:
            raise SubmissionError(
                f"--env {name}: looks like a secret, and Ray shows variables of a job to everybody who reaches its job"
                " server and keeps them readable in the logs of the nodes. Put it into a file or a secret of the"
                f" cluster instead, or accept that with --visible-env {name}"
            )
        chosen[name] = environ[name]
    return chosen


def check_no_secrets(text: str, environ: Mapping[str, str], *, where: str) -> None:
    """Refuse text that holds the value of a secret variable of this environment.

    Raises:
        SubmissionError: it does; names the variable, never the value.
    """
    for name, value in environ.items():
        if len(value) >= _MIN_SECRET and looks_secret(name, value) and value in text:
            raise SubmissionError(
                f"{where} holds the value of {name}: everybody who reaches the cluster could read it; take it out"
            )
