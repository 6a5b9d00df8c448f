"""One view of a training: what a terminal and what a program is shown."""

from __future__ import annotations

import json
import math

from rich.console import Console

from vcrd_ray.report.live import Snapshot
from vcrd_ray.report.live_view import plain, render

NOW = Snapshot(
    update=5,
    num_updates=20,
    update_s=2.0,
    eta_s=3725.0,
    tokens_per_s=1200.0,
    judge_tokens_per_s=math.nan,
    wait_share=0.25,
    loss=0.5,
    weights=(0.5, 1.0, 1.5),
    share_above_one=0.5,
    agreement=0.9,
    staleness=math.nan,
    alerts=("something is wrong",),
)


def shown(now: Snapshot | None) -> str:
    console = Console(width=110)
    with console.capture() as capture:
        console.print(render("run/distill", now))
    return capture.get()


def test_what_has_no_figure_has_no_line() -> None:
    text = shown(NOW)
    assert "5/20, 2.00 s each, 1:02:05 left" in text and "! something is wrong" in text and "1,200 tokens/s" in text
    assert "judge" not in text and "staleness" not in text


def test_before_the_first_update_that_is_said() -> None:
    assert "run/distill: no update yet" in shown(None) and plain(None) is None


def test_json_has_no_numbers_that_are_none() -> None:
    made = plain(NOW)
    assert made is not None and made["staleness"] is None and made["loss"] == 0.5
    json.dumps(made, allow_nan=False)
