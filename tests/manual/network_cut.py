"""A run whose judge or student is on another machine, and the network between the two is cut for a while.

    sudo python -m tests.manual.network_cut [--remote judge|student] [--seconds 20] [--updates 40]

Two network namespaces with a cable between them stand for two machines; both are removed at the end. Says what the run did, and
whether its student is the one of a run without a cut.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.actors.conftest import make_config
from tests.actors.nodes import ROOT, Cluster, Watched, kill_family, wait_until
from tests.actors.test_distill_on_ray import assert_bitwise
from tests.conftest import write_rollouts
from vcrd_ray.config import Config

_HERE, _THERE = ("vcrd-here", "10.213.0.1"), ("vcrd-there", "10.213.0.2")
_PORT = 6399
_LOCAL = {"judge": {"student": 1, "teacher": 1}, "student": {"teacher": 1, "judge": 1}}


def ip(*arguments: str) -> None:
    """One `ip` command."""
    subprocess.run(["ip", *arguments], check=True)


class TwoMachines(Cluster):
    """A head in one namespace and a node in another."""

    address = f"{_HERE[1]}:{_PORT}"
    within = ("ip", "netns", "exec", _HERE[0])

    def __init__(self, remote: str) -> None:
        self._remote = remote
        self._processes: list[subprocess.Popen[bytes]] = []

    def _begin(self) -> None:
        del self.environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]
        for name, _ in (_HERE, _THERE):
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", _HERE[0], "type", "veth", "peer", "name", "cable", "netns", _THERE[0])
        for name, address in (_HERE, _THERE):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "route", "add", "default", "dev", "cable")
        self._ray(_HERE, "--head", f"--port={_PORT}", "--include-dashboard=false", resources=_LOCAL[self._remote])
        self._ray(_THERE, f"--address={self.address}", resources={self._remote: 1})

    def _ray(self, where: tuple[str, str], *flags: str, resources: dict[str, int]) -> None:
        own = ", ".join(f'"{name}": {amount}' for name, amount in resources.items())
        command = [
            *("ip", "netns", "exec", where[0], str(Path(sys.executable).with_name("ray")), "start", "--block"),
            *(*flags, f"--node-ip-address={where[1]}", "--num-cpus=4", f"--resources={{{own}}}"),
            f"--object-store-memory={100 * 1024**2}",
        ]
        log = self.directory / f"{where[0]}.log"
        with log.open("w") as output:
            self._processes.append(
                subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=output, stderr=output)
            )
        try:
            wait_until(lambda: "Ray runtime started" in log.read_text(), "a node")
        except AssertionError as error:
            raise AssertionError(f"{error}: {log.read_text()}") from None

    def _end(self) -> None:
        for process in reversed(self._processes):
            kill_family(process)
        for name, _ in (_HERE, _THERE):
            subprocess.run(["ip", "netns", "delete", name], check=False)

    def cut(self, seconds: float) -> None:
        """No packet passes for a while."""
        ip("-n", _HERE[0], "link", "set", "cable", "down")
        time.sleep(seconds)
        ip("-n", _HERE[0], "link", "set", "cable", "up")
        # Taking a device down takes its routes with it.
        ip("-n", _HERE[0], "route", "replace", "default", "dev", "cable")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--remote", choices=["judge", "student"], default="judge")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--updates", type=int, default=40)
    flags = parser.parse_args()
    directory = Path(tempfile.mkdtemp())
    rollouts = write_rollouts(directory / "rollouts", 24)

    def config(name: str) -> Config:
        return make_config(directory / name, rollouts, distill={"num_updates": flags.updates})

    with TwoMachines(flags.remote) as machines:
        run = machines.start(config("cut"))
        wait_until(lambda: run.updates() >= 3, "three updates", timeout_s=200)
        before, began = run.updates(), time.monotonic()
        machines.cut(flags.seconds)
        print(f"cut for {flags.seconds:g} s after {before} updates; meanwhile {run.updates() - before} more")
        run.go_on()
        print(f"the next update was done {time.monotonic() - began:.1f} s after the cut began")
        print(f"the run ended with {run.end()}")
        report(run, machines.start(config("undisturbed")))


def report(run: Watched, undisturbed: Watched) -> None:
    """Whether both trained the same student."""
    assert undisturbed.end() == 0, undisturbed.output[-2000:]
    assert_bitwise(run.directory, undisturbed.directory)
    print("its student is that of a run without a cut, bit for bit")


if __name__ == "__main__":
    main()
