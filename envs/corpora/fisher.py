"""Fisher English (LDC2004S13, LDC2005S13): two-channel telephone calls `fe_03_NNNNN.sph`, 8 kHz, A left, B right.

The transcripts' segments (LDC2004T19, LDC2005T19) hold whole utterances with the pauses in them, so that who speaks
when is measured on the audio. The speakers' numbers come from `*_calldata.tbl` where it is there. libsndfile reads
plain SPHERE files, not those compressed with shorten: `sph2pipe -f wav` unpacks them, and .wav, .flac and .opus of
the same names are found as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from envs.corpora.files import is_audio, one_per_stem, relative, walk
from envs.corpora.recording import Recording, Track
from envs.corpora.text import read_text

NAME = re.compile(r"fe_03_(\d{5})")
_CALL, _A, _B = 0, 5, 10  # columns of calldata.tbl


def find(root: Path) -> Iterator[Recording]:
    """Every call, with its speakers' PINs or else A and B."""
    files = list(walk(root))
    people: dict[str, tuple[str, str]] = {}
    for path in files:
        if path.name.endswith("_calldata.tbl"):
            for line in read_text(path).splitlines():
                row = line.split(",")  # no field is quoted
                if len(row) > _B and row[_CALL].isdecimal():
                    people[row[_CALL].zfill(5)] = (row[_A], row[_B])
    for stem, path in one_per_stem(path for path in files if is_audio(path) and NAME.fullmatch(path.stem)).items():
        call = stem[-5:]
        both = (Track(relative(path, root), 0), Track(relative(path, root), 1))
        yield Recording(stem, both, people.get(call, ("A", "B")))
