"""Gymnasium wrappers for duplex environments: what lies between a policy and the world.

They work on any environment whose observation has `mic` and whose action is a frame of audio. Each one that keeps
something has `get_state` and `set_state`, which cover what it wraps, too.
"""

from envs.wrappers.codec import CodecTokens
from envs.wrappers.deadline import Deadline
from envs.wrappers.latency import Latency
from envs.wrappers.record import Record
from envs.wrappers.resample import Resample
from envs.wrappers.telephone import TelephoneCall
from envs.wrappers.transcript import Transcript

__all__ = ["CodecTokens", "Deadline", "Latency", "Record", "Resample", "TelephoneCall", "Transcript"]
