"""Known vulnerabilities of what is installed beside this Python, by pip-audit in an environment of its own.

    python -m deploy.audit

Exit code 0: every package was looked up and none is known to be vulnerable. 1: some are. 2: some could not be looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

_TOOL = "pip-audit>=2.9,<3"
_OWN = "vcrd-ray"


def pinned_packages() -> list[str]:
    """`name==version` of all that is installed but this project; local parts such as `+cpu` are unknown to registries."""
    found = {d.metadata["Name"].lower(): d.version.split("+")[0] for d in distributions()}
    return sorted(f"{name}=={version}" for name, version in found.items() if name != _OWN)


def show(report: dict[str, Any]) -> int:
    """Print the findings; the exit code."""
    packages = report["dependencies"]
    for package in packages:
        for finding in package.get("vulns", []):
            known_as = ", ".join([finding["id"], *finding.get("aliases", [])])
            cure = ", ".join(finding["fix_versions"]) or "no version"
            print(f"{package['name']} {package['version']}: {known_as}; fixed in {cure}")
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    vulnerable = sum(bool(package.get("vulns")) for package in packages)
    print(
        f"{len(packages)} packages, {vulnerable} vulnerable, {len(skipped)} not looked up: {', '.join(skipped) or '-'}"
    )
    if vulnerable:
        return 1
    return 2 if skipped else 0


def main() -> int:
    """Look everything up once."""
    with tempfile.TemporaryDirectory(prefix="vcrd-audit-") as folder:
        venv.create(folder, with_pip=True)
        python = [f"{folder}/bin/python", "-I"]
        subprocess.run([*python, "-m", "pip", "install", "--quiet", _TOOL], check=True)
        requirements = Path(folder) / "installed.txt"
        requirements.write_text("\n".join(pinned_packages()), encoding="utf-8")
        command = [*python, "-m", "pip_audit", "--requirement", str(requirements), "--no-deps", "--disable-pip"]
        done = subprocess.run(
            [*command, "--format", "json", "--progress-spinner", "off"], stdout=subprocess.PIPE, text=True
        )
    try:
        return show(json.loads(done.stdout))
    except json.JSONDecodeError:
        print("pip-audit gave no report; what it said stands above", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
