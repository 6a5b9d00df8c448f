"""A picture of a few updates from a run's timeline.json (`--cluster.timeline true`): who worked while who waited.

python -m tests.manual.timeline RUN/distill --page overlap.html [--updates 4 6]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

_LANES = {
    "forward": "student: forward",
    "backward": "student: backward",
    "step": "student: optimiser step",
    "wait_for_teacher": "student: waits",
    "wait_for_judge": "student: waits",
    "annotate": "teacher: states",
    "score": "judge: scores",
}


def spans(events: list[dict[str, Any]], first: int, last: int) -> list[tuple[str, float, float]]:
    """(lane, begin in s, duration in s) of everything from after update `first - 1` to the end of update `last`."""
    steps = sorted(event["ts"] + event["dur"] for event in events if event["name"] == "step")
    begin, end = steps[first - 1], steps[last]
    return [
        (_LANES[event["name"]], (event["ts"] - begin) / 1e6, event["dur"] / 1e6)
        for event in events
        if event["name"] in _LANES and event["ts"] + event["dur"] > begin and event["ts"] < end
    ]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--updates", type=int, nargs=2, default=[4, 6], metavar=("FIRST", "LAST"))
    flags = parser.parse_args()
    found = spans(json.loads((flags.run / "timeline.json").read_text()), *flags.updates)
    figure = go.Figure()
    for lane in dict.fromkeys(_LANES.values()):
        own = [(begin, seconds) for name, begin, seconds in found if name == lane]
        figure.add_bar(
            y=[lane] * len(own), base=[begin for begin, _ in own], x=[seconds for _, seconds in own], orientation="h"
        )
    figure.update_layout(
        showlegend=False,
        barmode="overlay",
        height=260,
        width=1100,
        margin={"t": 10, "b": 40},
        xaxis_title="seconds",
    )
    figure.update_yaxes(autorange="reversed")
    figure.write_html(flags.page)


if __name__ == "__main__":
    main()
