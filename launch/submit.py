"""Give a script to Slurm, or a manifest to Kubernetes, after asking whether it would be taken."""

from __future__ import annotations

import shutil
import subprocess

from envs.errors import UptakeError


def to_slurm(script: str) -> str:
    """Submit a batch script; returns the job's number. Raises UptakeError where sbatch is missing or refuses."""
    _run(["sbatch", "--test-only"], script)
    return _run(["sbatch", "--parsable"], script).split(";")[0]


def to_k8s(manifest: str) -> str:
    """Apply a manifest; returns what was made. Raises UptakeError where kubectl is missing or the cluster refuses."""
    _run(["kubectl", "apply", "--dry-run=server", "-f", "-"], manifest)
    return _run(["kubectl", "apply", "-f", "-"], manifest)


def _run(command: list[str], text: str) -> str:
    if shutil.which(command[0]) is None:
        raise UptakeError(f"{command[0]} is not on this machine; write the file with --out FILE and submit it there")
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    if done.returncode:
        raise UptakeError(f"{' '.join(command)} refused: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout.strip()
