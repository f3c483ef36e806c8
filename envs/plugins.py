"""Other people's code, found by a file's path or by entry point; what is wrong with it is said in one line."""

from __future__ import annotations

import importlib.util
import sys
import zlib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

from envs.errors import UptakeError


def run_file(path: Path, kind: str) -> ModuleType:
    """Run a Python file as a module of its own.

    Args:
        path: absolute.
        kind: what is looked for in it, for the messages ("reward").

    Raises:
        UptakeError: no such file, no Python file, or whatever it raises.
    """
    if not path.is_file():
        raise UptakeError(f"{path}: no such file; a {kind} by path is written path/to/file.py:name")
    name = f"uptake_{kind}_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UptakeError(f"{path}: not a Python file; a {kind} by path is written path/to/file.py:name")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    # The file may be anybody's code: whatever it raises is its author's mistake, said in one line.
    except Exception as error:
        del sys.modules[name]
        if isinstance(error, UptakeError):
            raise
        said = str(error).splitlines()[0] if str(error) else ""
        raise UptakeError(f"{path}: does not load: {type(error).__name__}: {said}") from error
    return module


def load_point(point: EntryPoint, kind: str) -> object:
    """What an entry point names; raises `UptakeError` for whatever loading it raises."""
    try:
        return point.load()
    # Anybody's code, which must not end in a traceback of ours.
    except Exception as error:
        raise UptakeError(
            f"{kind} {point.name!r}: entry point {point.value} does not load: {type(error).__name__}: {error}"
        ) from error
