"""CANDOR (Reece et al. 2023): a folder a video call, `<id>/processed/<id>.mp3` with one speaker a channel.

`<id>/metadata.json` says who is left and who is right. Where the speakers' own tracks were taken out of their videos
(`<id>/processed/<user id>.wav`), those are used: the joint file is lossy. The transcripts' turns hold the pauses in
them, so that who speaks when is measured on the audio.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from envs.corpora.files import is_audio, one_per_stem, relative, walk
from envs.corpora.recording import Recording, Refusal, Track
from envs.corpora.text import read_json
from envs.errors import UptakeError


def find(root: Path) -> Iterator[Recording | Refusal]:
    """Every folder with a `metadata.json` and a folder `processed`."""
    for path in walk(root):
        if path.name == "metadata.json" and (path.parent / "processed").is_dir():
            yield _conversation(path.parent, root)


def _conversation(folder: Path, root: Path) -> Recording | Refusal:
    name = folder.name
    try:
        left, right = _speakers(folder / "metadata.json")
    except UptakeError as error:
        return Refusal(name, "metadata", str(error))
    audio = one_per_stem(path for path in walk(folder / "processed") if is_audio(path))
    if left in audio and right in audio:
        own = (Track(relative(audio[left], root), None), Track(relative(audio[right], root), None))
        return Recording(name, own, (left, right), files=(str(folder / "metadata.json"),))
    if name not in audio:
        return Refusal(name, "no_partner", f"{folder / 'processed'}: neither {name}.mp3 nor both speakers' own files")
    joint = relative(audio[name], root)
    return Recording(name, (Track(joint, 0), Track(joint, 1)), (left, right), files=(str(folder / "metadata.json"),))


def _speakers(path: Path) -> tuple[str, str]:
    content = read_json(path)
    listed = content.get("speakers") if isinstance(content, dict) else None
    sides = {}
    for speaker in listed if isinstance(listed, list) else []:
        if isinstance(speaker, dict) and speaker.get("channel") in ("L", "R"):
            sides[speaker["channel"]] = str(speaker.get("user_id"))
    if set(sides) != {"L", "R"} or len(listed or []) != 2:
        raise UptakeError(f"{path}: 'speakers' does not name one on channel L and one on channel R")
    return sides["L"], sides["R"]
