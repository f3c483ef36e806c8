"""The header of a Slurm script, read as `sbatch --test-only` would where there is no sbatch.

Options and value grammars are those of sbatch's manual (Slurm 25.05).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from envs.errors import UptakeError, nearest

_NAMES = """
    account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container
    container-id contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot
    dependency distribution error exclude exclusive export export-file extra extra-node-info get-user-env gid gpu-bind
    gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint hold ignore-pbs input job-name
    kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network
    nice no-kill no-requeue nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node
    ntasks-per-socket open-mode output overcommit oversubscribe partition prefer priority profile propagate qos quiet
    reboot requeue reservation resv-ports segment signal sockets-per-node spread-job stepmgr switches test-only
    thread-spec threads-per-core time time-min tmp tres-bind tres-per-task uid use-min-nodes verbose wait
    wait-all-nodes wckey"""
OPTIONS = frozenset(_NAMES.split())
FLAGS = frozenset({"requeue", "no-requeue", "contiguous", "hold", "overcommit", "reboot", "spread-job", "stepmgr"})
"""Options without a value."""
COUNT, SIZE = r"[1-9]\d*", r"\d+[KMGT]?B?"
GRAMMAR: Mapping[str, tuple[str, str]] = {
    "nodes": (rf"{COUNT}(-{COUNT})?", "a number, or least-most"),
    "ntasks-per-node": (COUNT, "a whole number"),
    "cpus-per-task": (COUNT, "a whole number"),
    "gpus-per-node": (rf"([\w.-]+:)?{COUNT}", "a number, or type:number"),
    "mem": (SIZE, "a size such as 512G"),
    "mem-per-gpu": (SIZE, "a size such as 64G"),
    "time": (r"\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2}", "minutes, h:mm:ss or d-hh:mm:ss"),
    "signal": (r"([RB]:)*(\d+|(SIG)?[A-Z]+\d?)(@\d{1,5})?", "[B:]SIGNAL@SECONDS, at most 65535 seconds"),
    "open-mode": (r"append|truncate", "append or truncate"),
    "partition": (r"[\w.,-]+", "names without spaces"),
    "account": (r"[\w.@-]+", "a name without spaces"),
    "qos": (r"[\w.,-]+", "a name without spaces"),
}


def directives(script: str) -> dict[str, str]:
    """The options of a batch script, checked; an option without a value is an empty text.

    Raises:
        UptakeError: no interpreter in the first line, an unknown option, a value outside its grammar, an option given
            twice, or one below the first command, which sbatch would silently leave out.
    """
    lines = script.splitlines()
    if not lines or not lines[0].startswith("#!"):
        raise UptakeError("batch script: the first line names no interpreter; begin it with #!/usr/bin/env bash")
    found: dict[str, str] = {}
    commands = False
    for number, line in enumerate(lines, 1):
        if not line.startswith("#SBATCH"):
            commands = commands or bool(line.strip() and not line.lstrip().startswith("#"))
            continue
        if commands:
            raise UptakeError(f"batch script, line {number}: '{line}' stands below a command, where sbatch ignores it")
        match = re.fullmatch(r"#SBATCH\s+--([a-z-]+)(?:=(.*))?", line)
        if match is None:
            raise UptakeError(f"batch script, line {number}: '{line}': write #SBATCH --option=value")
        name, value = match.group(1), match.group(2)
        if name in found:
            raise UptakeError(f"batch script, line {number}: --{name} is given twice; keep one")
        check(name, value, f"batch script, line {number}")
        found[name] = value or ""
    return found


def check(name: str, value: str | None, where: str) -> None:
    """Raise UptakeError for an option that sbatch does not know, or a value that it would not read."""
    if name not in OPTIONS:
        raise UptakeError(f"{where}: sbatch has no option --{name}{nearest(name, sorted(OPTIONS))}")
    if name in FLAGS:
        if value is not None:
            raise UptakeError(f"{where}: --{name} takes no value, found '{value}'")
        return
    if not value or value != value.strip():
        raise UptakeError(f"{where}: --{name} needs a value; write --{name}=VALUE")
    grammar, meant = GRAMMAR.get(name, (r"[^\n]+", "one line"))
    if re.fullmatch(grammar, value) is None:
        raise UptakeError(f"{where}: --{name}={value}: expected {meant}")
