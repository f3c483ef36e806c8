"""Which reader fits a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from envs.corpora import candor, fisher, lhotse, plain, seamless
from envs.corpora.files import is_audio, walk
from envs.corpora.recording import Recording, Refusal
from envs.errors import UptakeError, nearest

READERS: Mapping[str, Callable[[Path], Iterator[Recording | Refusal]]] = {
    "lhotse": lhotse.find,
    "candor": candor.find,
    "seamless": seamless.find,
    "fisher": fisher.find,
    "plain": plain.find,
}


def detect(root: Path) -> str:
    """The layout of a folder: manifests, then what its files are called, then plain two-channel files."""
    if lhotse.manifests(root):
        return "lhotse"
    for path in walk(root):
        if path.name == "metadata.json" and (path.parent / "processed").is_dir():
            return "candor"
        if is_audio(path) and seamless.NAME.fullmatch(path.stem):
            return "seamless"
        if is_audio(path) and fisher.NAME.fullmatch(path.stem):
            return "fisher"
    return "plain"


def recordings(root: Path, layout: str | None = None) -> tuple[str, list[Recording | Refusal]]:
    """Every recording of a corpus, and the layout that it was read with.

    Args:
        root: the corpus folder.
        layout: one of `READERS`; None: as `detect` says.

    Raises:
        UptakeError: no such folder or layout, nothing in it, two recordings of one name, a malformed manifest.
    """
    if not root.is_dir():
        raise UptakeError(f"{root}: no such folder; give the folder that holds the corpus")
    layout = detect(root) if layout is None else layout
    if layout not in READERS:
        raise UptakeError(f"layout {layout!r} is not known{nearest(layout, READERS)}")
    found = list(READERS[layout](root))
    if not found:
        raise UptakeError(f"{root}: no recording in it (layout {layout}); docs/corpora.md shows what is looked for")
    names: set[str] = set()
    for one in found:
        if one.id in names:
            raise UptakeError(f"{root}: two recordings are called {one.id!r}; give each its own name")
        names.add(one.id)
    return layout, found
