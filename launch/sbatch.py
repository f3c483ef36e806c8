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
_FLAGS = """
    contiguous hold ignore-pbs no-requeue overcommit oversubscribe quiet reboot requeue spread-job stepmgr test-only
    use-min-nodes verbose wait"""
FLAGS = frozenset(_FLAGS.split())
"""Options without a value."""
OPTIONAL = frozenset({"exclusive", "get-user-env", "nice", "no-kill", "propagate", "resv-ports"})
"""Options with a value or without one."""
COUNT, SIZE = r"[1-9]\d*", r"\d+[KMGT]?B?"
LONGEST_SIGNAL = 65535
"""Seconds before the end at which sbatch can ask a job to stop."""
EARLY = 60
"""Seconds by which it may do so sooner than asked for."""
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
    "exclusive": (r"user|mcs|topo", "user, mcs, topo, or no value"),
    "no-kill": (r"off", "off, or no value"),
}
_PLAIN = re.compile(r"[\w.,:/=@%+*\[\]-]+", re.ASCII)
"""A value that sbatch reads as it stands."""
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def directives(script: str) -> dict[str, str]:
    """The options of a batch script, checked; an option without a value is an empty text, quotes are taken off.

    Raises:
        UptakeError: no interpreter in the first line, an unknown option, a value outside its grammar, an option given
            twice, or one below the first command, which sbatch would silently leave out.
    """
    lines = script.split("\n")  # as sbatch and bash do, which know no other end of a line
    if not lines[0].startswith("#!"):
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
        name, where = match.group(1), f"batch script, line {number}"
        if name in found:
            raise UptakeError(f"{where}: --{name} is given twice; keep one")
        value = None if match.group(2) is None else _unquoted(match.group(2), f"{where}: --{name}")
        check(name, value, where)
        found[name] = value or ""
    return found


def check(name: str, value: str | None, where: str) -> None:
    """Raise UptakeError for an option that sbatch does not know, or a value that it would not read."""
    if name not in OPTIONS:
        raise UptakeError(f"{where}: sbatch has no option --{name}{nearest(name, sorted(OPTIONS))}")
    if name in FLAGS:
        if value is not None:
            raise UptakeError(f"{where}: --{name} takes no value, found '{value}'; write --{name}")
        return
    if value is None and name in OPTIONAL:
        return
    if not value or value != value.strip():
        alone = f", or --{name} alone" if name in OPTIONAL else ""
        raise UptakeError(f"{where}: --{name} needs a value; write --{name}=VALUE{alone}")
    grammar, meant = GRAMMAR.get(name, (r"[^\x00-\x1f\x7f]+", "one line"))
    known = re.fullmatch(grammar, value) is not None
    if not known or (name == "signal" and int(value.partition("@")[2] or 0) > LONGEST_SIGNAL):
        raise UptakeError(f"{where}: --{name}={value}: expected {meant}")


def quoted(value: str) -> str:
    """A value as sbatch reads it back, in quotes where it would take a part of it for something else."""
    if _PLAIN.fullmatch(value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _unquoted(text: str, where: str) -> str:
    if match := _QUOTED.fullmatch(text):
        return re.sub(r"\\(.)", r"\1", match.group(1))
    if re.search(r"[\s\"'\\#]", text):
        raise UptakeError(f"{where}={text}: sbatch would read a part of it as something else; write {quoted(text)}")
    return text


def seconds(time: str) -> int:
    """How long a time is that `check` has let pass; 0 is no limit."""
    days, dash, clock = time.rpartition("-")
    fields = [int(field) for field in clock.split(":")]
    if not dash and len(fields) < 3:
        fields.insert(0, 0)  # minutes come first
    hours, minutes, rest = (*fields, 0, 0)[:3]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + rest
