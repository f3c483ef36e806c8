"""Batch scripts and manifests from `launch/templates/`: what starts `uptake launch local` on every node.

    uptake launch slurm recipes/ppo --nodes 2 --ranks 8 --time 24:00:00 --site partition=gpu --out job.sh
    uptake launch k8s recipes/ppo --nodes 2 --ranks 8 --image IMAGE --claim runs --submit

Both are asked to stop before they are, write a checkpoint, and go on from it when they run again.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from envs.errors import AGAIN, MISTAKE, UptakeError
from launch import sbatch
from launch.named import find

LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
"""A name in the network of Kubernetes."""
_PART = r"[a-z0-9]+([._-]+[a-z0-9]+)*"
IMAGE = rf"([\w.-]+(:\d+)?/)?{_PART}(/{_PART})*(:\w[\w.-]{{0,127}})?(@[\w+.-]+:[0-9a-f]+)?"
"""[HOST[:PORT]/]NAME[/NAME][:TAG][@DIGEST]"""


def slurm(
    config: str,
    overrides: Sequence[str],
    *,
    nodes: int,
    ranks: int,
    time: str,
    gpus: bool = True,
    cpus: int = 0,
    memory: str = "",
    site: Mapping[str, str | None] | None = None,
    setup: str = "",
    port: int = 29500,
    grace: int = 300,
) -> str:
    """A batch script: one task a node, `ranks` ranks each.

    Args:
        config, overrides: as of `uptake train`; `sft/NAME`: of `uptake sft`.
        gpus: ask for `ranks` GPUs a node.
        cpus, memory: of a node; 0 and "" leave them to the cluster.
        site: further options of sbatch, such as partition and account; None for one without a value.
        setup: a shell line before training, such as the activation of a virtual environment.
        grace: seconds before the end at which the script is asked to stop: longer than one iteration takes, and
            shorter than the job.

    Raises:
        UptakeError: the configuration is wrong, or an option is none that sbatch would take.
    """
    job = _label(find(config, overrides).config.folder.name)
    site = {"output": f"{job}-%j.out"} | dict(site or {})
    for name, value in site.items():
        sbatch.check(name, value, f"--site {name}" if value is None else f"--site {name}={value}")
    if grace > sbatch.LONGEST_SIGNAL:
        raise UptakeError(f"--grace {grace}: sbatch asks at most {sbatch.LONGEST_SIGNAL} seconds before the end")
    script = _render(
        "slurm.sh.j2",
        job=job,
        nodes=nodes,
        ranks=ranks,
        gpus=ranks if gpus else 0,
        cpus=cpus,
        memory=memory,
        time=time,
        site=site,
        setup=setup,
        port=port,
        grace=grace,
        train=[shlex.quote(word) for word in (config, *overrides)],
        mistake=MISTAKE,
    )
    sbatch.directives(script)
    if 0 < sbatch.seconds(time) <= grace + sbatch.EARLY:
        raise UptakeError(
            f"--grace {grace}: a job of --time {time} would be asked to stop as soon as it begins, again and again; "
            f"take more than {grace + sbatch.EARLY} seconds of time, or less grace"
        )
    return script


def k8s(
    config: str,
    overrides: Sequence[str],
    *,
    nodes: int,
    ranks: int,
    image: str,
    claim: str,
    namespace: str = "default",
    mount: str = "/work",
    gpus: bool = True,
    port: int = 29500,
    grace: int = 300,
) -> str:
    """A headless Service and an indexed Job: one pod a node, `ranks` ranks each.

    Args:
        config, overrides: as above; the run folder is inside `mount`.
        image: has `uptake` installed.
        claim: a persistent volume claim that all pods can write (ReadWriteMany), mounted at `mount`.
        gpus: ask for `ranks` GPUs a pod.
        grace: seconds between being asked to stop and being killed: longer than one iteration takes.

    Raises:
        UptakeError: the configuration is wrong, or a name is none that Kubernetes would take.
    """
    folder = find(config, overrides).config.folder
    small = "lower-case letters and digits with '-' between them"
    for option, value, grammar, meant in (
        ("namespace", namespace, LABEL, f"at most 63 {small}"),
        ("claim", claim, rf"(?=.{{1,253}}$){LABEL}(\.{LABEL})*", f"{small}, or '.'"),
        ("image", image, IMAGE, "an image such as registry/uptake:1, its name in lower case"),
        ("mount", mount, r"/[^:\x00-\x1f\x7f]+", "an absolute path, not / and without ':'"),
    ):
        if re.fullmatch(grammar, value, re.ASCII) is None:
            raise UptakeError(f"--{option} '{value}': expected {meant}")
    manifest = _render(
        "k8s.yaml.j2",
        job=_label(folder.name),
        namespace=namespace,
        nodes=nodes,
        ranks=ranks,
        limits={"nvidia.com/gpu": ranks} if gpus else {"cpu": ranks},
        image=image,
        claim=claim,
        mount=mount,
        port=port,
        grace=grace,
        mistake=MISTAKE,
        again=AGAIN,
        train=[word.replace("$", "$$") for word in (config, *overrides)],  # or it would fill in $(NAME)
    )
    assert len(list(yaml.safe_load_all(manifest))) == 2
    return manifest


def pairs(options: Sequence[str]) -> dict[str, str | None]:
    """`name=value` each, as `--site` has it, or a name alone."""
    found: dict[str, str | None] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if name in found:
            raise UptakeError(f"--site {option}: {name} is given twice; keep one")
        found[name] = value if equals else None
    return found


def _render(template: str, **values: Any) -> str:
    source = (resources.files("launch") / "templates" / template).read_text("utf-8")
    # Every value has been checked or is quoted where it stands; one that is missing is a bug, not an empty text.
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"yaml": _as_yaml, "sbatch": sbatch.quoted}
    return environment.from_string(source).render(**values)


def _as_yaml(value: Any) -> str:
    """A text or a mapping in one line of YAML, whatever characters it has."""
    style = '"' if isinstance(value, str) else None
    return yaml.safe_dump(value, default_flow_style=True, default_style=style, width=float("inf")).strip()


def _label(name: str) -> str:
    """The name of a job: a DNS label with room for a pod's index, which Slurm takes as well."""
    label = f"uptake-{name}".lower().replace("_", "-").replace(".", "-")
    if re.fullmatch(r"[a-z0-9-]{1,56}(?<!-)", label) is None:
        raise UptakeError(f"name = '{name}': a job's name has letters, digits and '-', at most 49; set name=")
    return label
