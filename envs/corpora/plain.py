"""A folder of two-channel files, wherever they lie in it.

Who speaks when is read from an RTTM or a TextGrid of the same name beside the audio, or from any RTTM in the folder
that names the recording; without one it is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from envs.corpora import rttm, textgrid
from envs.corpora.files import is_audio, relative, walk
from envs.corpora.recording import Recording, Track
from envs.corpora.text import read_text
from envs.errors import UptakeError


def find(root: Path) -> Iterator[Recording]:
    """Every audio file is a recording, called by its path without the suffix."""
    files = list(walk(root))
    audio = [path for path in files if is_audio(path)]
    beside = {path.with_suffix(""): path for path in files if path.suffix.lower() in (".rttm", ".textgrid")}
    shared = _shared([path for path in files if path.suffix.lower() == ".rttm"])
    taken: set[str] = set()
    for path in audio:
        name = relative(path.with_suffix(""), root)
        name = name if name not in taken else relative(path, root)  # a.wav beside a.flac
        taken.add(name)
        both = (Track(relative(path, root), 0), Track(relative(path, root), 1))
        said = beside.get(path.with_suffix(""))
        if said is None and path.stem in shared:
            said = shared[path.stem]
        if said is None:
            yield Recording(name, both, ("0", "1"))
        elif said.suffix.lower() == ".textgrid":
            yield Recording(name, both, ("0", "1"), partial(textgrid.read, said), "textgrid", (str(said),))
        else:
            only = path.stem if path.stem in shared else None
            yield Recording(name, both, ("0", "1"), partial(rttm.read, said, only), "rttm", (str(said),))


def _shared(paths: list[Path]) -> dict[str, Path]:
    """Recording -> the first RTTM that names it. A malformed one is told when its recording is read."""
    named: dict[str, Path] = {}
    for path in paths:
        try:
            text = read_text(path)
        except UptakeError:
            continue  # beside an audio file it is read again, and told then
        for line in text.splitlines():
            fields = line.split(maxsplit=2)
            if len(fields) > 1 and fields[0].upper() == "SPEAKER":
                named.setdefault(fields[1], path)
    return named
