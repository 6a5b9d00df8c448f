"""What travels with a job: the packages and its config, and nothing else of the project's root."""

from __future__ import annotations

import shutil
from pathlib import Path

from jobs.ops.submission import CONFIG_FOLDER, PACKAGES, Submission, SubmissionError

_MIB = 1024**2
# Ray's own limit is 512 MiB; code and configs are a few.
MAX_UPLOAD_MIB = 200


def stage(submission: Submission, root: Path, folder: Path) -> int:
    """Copy what travels with a job from the project's root into an empty folder; its bytes.

    Nothing but the packages and the config: whatever else lies in the root, keys and data included, stays here.

    Raises:
        SubmissionError: more than code and configs.
    """
    sizes = {
        file: file.stat().st_size
        for package in PACKAGES
        for file in sorted((root / package).rglob("*"))
        if file.is_file() and not any(p.startswith(".") or p == "__pycache__" for p in file.relative_to(root).parts)
    }
    total = sum(sizes.values())
    if total > MAX_UPLOAD_MIB * _MIB:
        largest = ", ".join(str(file.relative_to(root)) for file in sorted(sizes, key=lambda f: -sizes[f])[:3])
        raise SubmissionError(
            f"{total / _MIB:.0f} MiB would be uploaded and {MAX_UPLOAD_MIB} may be; models and data belong on the"
            f" cluster's storage. The largest: {largest}"
        )
    targets = {file: folder / file.relative_to(root) for file in sizes}
    if submission.extra_config is not None:
        targets[submission.extra_config] = folder / CONFIG_FOLDER / submission.extra_config.name
    for file, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return total
