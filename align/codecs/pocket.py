"""The codec that pocket speaks with: a parametric vocoder whose parameters are residual-vector-quantised.

Every 80 ms frame (1920 samples at 24 kHz) becomes 8 codes, the shape of Mimi's 8 codebooks. The frame is described by
8 sub-frames of 10 ms: log mel energies, log pitch and voicing. A residual vector quantiser (SoundStream, Zeghidour et
al. 2021) learned by k-means turns that description into codes; decoding sums the codewords and drives a
pulse-plus-noise excitation through the minimum-phase filter of the mel envelope (Markel & Gray 1976).

A neural codec of this size needs hours of CPU training before it is intelligible; this one needs minutes, because only
the quantiser is learned. It is a real codec all the same: streaming, causal, batched, deterministic, a state per row.

Algorithmic delay: one analysis window (21 ms) is centred half a window behind the newest sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.fft
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from envs.errors import UptakeError
from envs.files import whole

SAMPLE_RATE = 24_000
FRAME = 1920
HOP = 240  # 10 ms
SUB = FRAME // HOP  # 8 sub-frames a frame
FFT = 1024
BINS = FFT // 2 + 1
WINDOW = 512  # 21 ms: short enough for plosives
PITCH_WINDOW = 1024  # 43 ms: two periods of the lowest pitch
_THIRDS = PITCH_WINDOW // 3
BANDS = 26
DIM = BANDS + 2  # mel energies, log pitch, voicing
CODEBOOKS = 8

_FLOOR = 1e-7  # power per sample, -70 dBFS: below it everything is the same silence
_PITCH = (65.0, 400.0)  # Hz
_PITCH_SCALE = 3.0  # weight of log pitch beside log mel energies in the quantiser's distance
_VOICING_SCALE = 3.0
_SPLIT = (3000.0, 5500.0)  # Hz; a voiced sound is periodic below, noise above
_RIR = FFT - HOP  # samples by which a filter rings beyond its sub-frame


def _mel(hz: np.ndarray | float) -> np.ndarray:
    return 2595.0 * np.log10(1.0 + np.asarray(hz) / 700.0)


def _mel_bank() -> np.ndarray:
    """Triangles with unit area, so that a band holds the mean power of its bins: (BINS, BANDS)."""
    edges = 700.0 * (10 ** (np.linspace(_mel(40.0), _mel(11_000.0), BANDS + 2) / 2595.0) - 1.0)
    hz = np.linspace(0.0, SAMPLE_RATE / 2, BINS)
    rise = (hz[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - hz[:, None]) / (edges[2:] - edges[1:-1])
    bank = np.clip(np.minimum(rise, fall), 0.0, None)
    return (bank / bank.sum(axis=0)).astype(np.float32)


def _envelope_bank() -> np.ndarray:
    """Linear interpolation of band values back to bins, on the mel scale: (BANDS, BINS)."""
    centres = np.linspace(_mel(40.0), _mel(11_000.0), BANDS + 2)[1:-1]
    position = np.interp(_mel(np.linspace(0.0, SAMPLE_RATE / 2, BINS)), centres, np.arange(BANDS))
    low = np.minimum(position.astype(int), BANDS - 2)
    bank = np.zeros((BANDS, BINS), np.float32)
    bank[low, np.arange(BINS)] = 1.0 - (position - low)
    bank[low + 1, np.arange(BINS)] += position - low
    return bank


@dataclass
class PocketState:
    """What a batch of streams remembers between frames; every array has the row first."""

    history: np.ndarray  # (B, PITCH_WINDOW - HOP) newest input samples
    pitch: np.ndarray  # (B,) last voiced log pitch heard
    ringing: np.ndarray  # (B, _RIR) output that earlier sub-frames still owe
    phase: np.ndarray  # (B,) of the pulse train, in periods
    frame: np.ndarray  # (B,) frames decoded; picks the noise, so that a row's sound never depends on its neighbours

    def rows(self) -> tuple[np.ndarray, ...]:
        return self.history, self.pitch, self.ringing, self.phase, self.frame


class PocketCodec:
    """Streaming, batched, deterministic. See `envs.codec.Codec` for the protocol."""

    sample_rate = SAMPLE_RATE
    frame = FRAME
    codebooks = CODEBOOKS

    def __init__(self, codewords: np.ndarray, mean: np.ndarray) -> None:
        """`codewords` (CODEBOOKS, card, SUB * DIM) and `mean` (SUB * DIM), both float32."""
        self.codewords = np.ascontiguousarray(codewords, np.float32)
        self.mean = np.ascontiguousarray(mean, np.float32)
        self.card = codewords.shape[1]
        self._half_norms = 0.5 * np.square(self.codewords).sum(-1)  # (Q, card)
        self._tables = _Tables()

    # -- state ---------------------------------------------------------------------------------------------------------

    def init_state(self, batch: int) -> PocketState:
        return PocketState(
            history=np.zeros((batch, PITCH_WINDOW - HOP), np.float32),
            pitch=np.full(batch, np.log(150.0), np.float32),
            ringing=np.zeros((batch, _RIR), np.float32),
            phase=np.zeros(batch, np.float64),
            frame=np.zeros(batch, np.int64),
        )

    def reset(self, state: PocketState, rows: np.ndarray) -> None:
        fresh = self.init_state(1)
        for array, start in zip(state.rows(), fresh.rows(), strict=True):
            array[rows] = start[0]

    def fork(self, state: PocketState, source: int, rows: np.ndarray) -> None:
        for array in state.rows():
            array[rows] = array[source]

    # -- encode --------------------------------------------------------------------------------------------------------

    def analyse(self, state: PocketState, pcm: np.ndarray) -> np.ndarray:
        """One frame of audio (B, FRAME) to its description (B, SUB * DIM)."""
        t = self._tables
        signal = np.concatenate([state.history, pcm], axis=1)  # (B, PITCH_WINDOW - HOP + FRAME)
        state.history[...] = signal[:, -state.history.shape[1] :]
        blocks = np.lib.stride_tricks.sliding_window_view(signal, PITCH_WINDOW, axis=1)[
            :, ::HOP
        ]  # (B, SUB, PITCH_WINDOW)

        centre = (PITCH_WINDOW - WINDOW) // 2  # energies and pitch are read round the same instant
        spectrum = scipy.fft.rfft(blocks[..., centre : centre + WINDOW] * t.window, FFT)
        power = (spectrum.real**2 + spectrum.imag**2) / t.window_power  # (B, SUB, BINS)
        mel = np.log(power @ t.mel_bank + _FLOOR)  # (B, SUB, BANDS)

        pitch, voicing = self._pitch(state, blocks, mel.max(-1) > np.log(30 * _FLOOR))
        tail = np.stack([pitch * _PITCH_SCALE, voicing * _VOICING_SCALE], axis=-1)  # (B, SUB, 2)
        return np.concatenate([mel, tail], axis=-1).reshape(len(pcm), SUB * DIM).astype(np.float32)

    def _pitch(self, state: PocketState, blocks: np.ndarray, loud: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log pitch and voicing, both (B, SUB), by normalised autocorrelation; quiet rows keep the pitch they had."""
        t = self._tables
        pitch = np.repeat(state.pitch[:, None], SUB, axis=1)  # (B, SUB)
        voicing = np.zeros((len(blocks), SUB), np.float32)
        rows = np.flatnonzero(loud.any(-1))
        if not len(rows):
            return pitch, voicing
        # A third of the rate is plenty for a pitch and costs a quarter.
        loudest = blocks[rows]
        thirds = sum(loudest[..., i : 3 * _THIRDS : 3] for i in range(3)) * (t.pitch_window / 3)
        wide = scipy.fft.rfft(thirds, FFT)
        correlation = scipy.fft.irfft(wide.real**2 + wide.imag**2)[..., t.lags]  # (R, SUB, L)
        energy = np.square(thirds).sum(-1, keepdims=True) + 1e-3 * _THIRDS * _FLOOR
        score = correlation / energy / t.window_correlation
        held = state.pitch[rows]
        for i in range(SUB):  # the pitch before leans on the pitch now: octave jumps are rarer than they look
            best = (score[:, i] - 0.06 * np.abs(t.log_pitch - held[:, None])).argmax(-1)
            best = np.clip(best, 1, len(t.lags) - 2)[:, None]
            before, peak, after = (np.take_along_axis(score[:, i], best + d, 1)[:, 0] for d in (-1, 0, 1))
            bend = np.minimum(before - 2 * peak + after, -1e-6)  # a parabola finds the lag between samples
            lag = t.lags[best[:, 0]] + np.clip(0.5 * (before - after) / bend, -0.5, 0.5)
            voicing[rows, i] = np.clip((peak - 0.3) / 0.4, 0.0, 1.0) * loud[rows, i]
            held = np.where(voicing[rows, i] > 0.5, np.log(SAMPLE_RATE / 3 / lag), held).astype(np.float32)
            pitch[rows, i] = held
        state.pitch[rows] = held
        return pitch, voicing

    def quantise(self, description: np.ndarray) -> np.ndarray:
        """(N, SUB * DIM) to codes (N, Q): nearest codeword of what the codebooks before left over."""
        rest = description - self.mean
        codes = np.empty((len(rest), self.codebooks), np.int64)
        for q, words in enumerate(self.codewords):
            codes[:, q] = (rest @ words.T - self._half_norms[q]).argmax(-1)
            rest = rest - words[codes[:, q]]
        return codes

    def encode(self, state: PocketState, pcm: np.ndarray) -> np.ndarray:
        """(B, FRAME) float32 to codes (B, Q) int64."""
        return self.quantise(self.analyse(state, pcm))

    # -- decode --------------------------------------------------------------------------------------------------------

    def dequantise(self, codes: np.ndarray) -> np.ndarray:
        """Codes (N, Q) to descriptions (N, SUB * DIM)."""
        return self.mean + sum(self.codewords[q][codes[:, q]] for q in range(self.codebooks))

    def decode(self, state: PocketState, codes: np.ndarray) -> np.ndarray:
        """Codes (B, Q) to audio (B, FRAME) float32."""
        return self.synthesise(state, self.dequantise(codes))

    def synthesise(self, state: PocketState, description: np.ndarray) -> np.ndarray:
        """Description (B, SUB * DIM) to audio (B, FRAME) float32."""
        parts = description.reshape(-1, SUB, DIM)
        mel = parts[..., :BANDS]
        sounding = mel.max((1, 2)) > np.log(4 * _FLOOR)  # (B,) rows that are silent cost nothing
        out = np.zeros((len(parts), FRAME + _RIR), np.float32)
        out[:, :_RIR] += state.ringing
        rows = np.flatnonzero(sounding)
        if len(rows):
            self._voice(state, rows, mel[rows], parts[rows, :, BANDS], parts[rows, :, BANDS + 1], out)
        state.ringing[...] = out[:, FRAME:]
        state.frame += 1
        state.phase[~sounding] = 0.0
        return np.clip(out[:, :FRAME], -1.0, 1.0)

    def _voice(
        self,
        state: PocketState,
        rows: np.ndarray,
        mel: np.ndarray,
        pitch: np.ndarray,
        voicing: np.ndarray,
        out: np.ndarray,
    ) -> None:
        t = self._tables
        hz = np.clip(np.exp(pitch / _PITCH_SCALE), *_PITCH)  # (R, SUB)
        voiced = voicing > 0.5 * _VOICING_SCALE
        # A pulse falls where the running phase passes a whole number; sqrt(period) gives it the power of unit noise.
        steps = np.repeat(hz / SAMPLE_RATE, HOP, axis=1)  # (R, FRAME)
        phase = state.phase[rows, None] + np.cumsum(steps, axis=1)
        whole = np.floor(phase)
        fell = np.diff(whole, axis=1, prepend=np.floor(state.phase[rows, None])) > 0
        state.phase[rows] = phase[:, -1] - whole[:, -1]
        pulses = np.where(fell, np.sqrt(1.0 / steps), 0.0).astype(np.float32).reshape(len(rows), SUB, HOP)
        pulses *= voiced[..., None]
        noise = t.noise[(state.frame[rows, None] * SUB + np.arange(SUB)) % len(t.noise)]  # (R, SUB, HOP)

        cepstrum = mel @ t.cepstrum  # (R, SUB, order)
        response = np.exp(cepstrum @ t.spectrum_real) * np.exp(1j * (cepstrum @ t.spectrum_imag))  # (R, SUB, BINS)
        excitation = scipy.fft.rfft(pulses, FFT) * t.periodic
        share = np.where(voiced[..., None], t.aperiodic, 1.0)
        excitation += scipy.fft.rfft(noise, FFT) * share
        pieces = scipy.fft.irfft(excitation * response)  # (R, SUB, FFT)
        for i in range(SUB):
            out[rows, i * HOP : i * HOP + FFT] += pieces[:, i]

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        with whole(Path(path)) as partial:
            save_file({"codewords": self.codewords.astype(np.float16), "mean": self.mean}, partial)

    @classmethod
    def load(cls, path: str | Path) -> PocketCodec:
        if not Path(path).is_file():
            raise UptakeError(f"{path}: no codec weights here; a pocket folder holds codec.safetensors")
        try:
            tensors = load_file(path)  # numpy's: environments take this codec, and load no torch
            codewords, mean = tensors["codewords"], tensors["mean"]
        except KeyError as error:
            raise UptakeError(f"{path}: not a pocket codec (no tensor {error}); copy the file again") from error
        except (SafetensorError, OSError) as error:
            raise UptakeError(f"{path}: truncated or not safetensors ({error}); copy the file again") from error
        width = SUB * DIM
        if codewords.ndim != 3 or codewords.shape != (CODEBOOKS, codewords.shape[1], width) or mean.shape != (width,):
            raise UptakeError(
                f"{path}: not a pocket codec: codewords {codewords.shape} and mean {mean.shape}, expected "
                f"({CODEBOOKS}, N, {width}) and ({width},); copy the file again"
            )
        for name, values in (("codewords", codewords), ("mean", mean)):
            if values.dtype.kind != "f":
                raise UptakeError(f"{path}: {name} is {values.dtype}, expected numbers of floating point")
            if not np.isfinite(values).all():
                raise UptakeError(f"{path}: {name} has NaN or infinite values; copy the file again")
        return cls(codewords.astype(np.float32), mean.astype(np.float32))


def shipped() -> PocketCodec:
    """The codec of the checkpoint that ships with the package."""
    return PocketCodec.load(Path(__file__).parents[1] / "policies" / "pocket" / "codec.safetensors")


class _Tables:
    """Constants of the transforms, computed once a codec."""

    order = 48  # cepstral coefficients kept: finer than the mel bands, coarser than harmonics

    def __init__(self) -> None:
        self.window = np.hanning(WINDOW).astype(np.float32)
        self.window_power = float(np.square(self.window).sum())
        self.pitch_window = np.hanning(_THIRDS).astype(np.float32)
        shortest, longest = (round(SAMPLE_RATE / 3 / hz) for hz in reversed(_PITCH))
        self.lags = np.arange(shortest, longest + 1)
        self.log_pitch = np.log(SAMPLE_RATE / 3 / self.lags).astype(np.float32)
        own = np.correlate(self.pitch_window, self.pitch_window, "full")[_THIRDS - 1 :]
        self.window_correlation = (own / own[0])[self.lags].astype(np.float32)
        hz = np.linspace(0.0, SAMPLE_RATE / 2, BINS)
        low, high = _SPLIT
        noisy = np.clip((hz - low) / (high - low), 0.0, 1.0)
        self.periodic = np.sqrt(1.0 - noisy).astype(np.float32)
        self.aperiodic = np.sqrt(noisy).astype(np.float32)
        # A fixed second of noise: no random stream to keep, and the same frame always sounds the same.
        self.noise = np.random.Generator(np.random.Philox(20)).standard_normal((1009, HOP)).astype(np.float32)

    @cached_property
    def mel_bank(self) -> np.ndarray:
        return _mel_bank()

    @cached_property
    def cepstrum(self) -> np.ndarray:
        """Band log powers to the folded (minimum-phase) cepstrum of the log amplitude: (BANDS, order)."""
        log_amplitude = 0.5 * _envelope_bank()  # (BANDS, BINS)
        real = scipy.fft.irfft(log_amplitude)[:, : self.order]
        real[:, 1:] *= 2.0
        return real.astype(np.float32)

    @cached_property
    def spectrum_real(self) -> np.ndarray:
        return np.cos(self._angles).astype(np.float32)

    @cached_property
    def spectrum_imag(self) -> np.ndarray:
        return -np.sin(self._angles).astype(np.float32)

    @cached_property
    def _angles(self) -> np.ndarray:
        return np.outer(np.arange(self.order), np.linspace(0.0, np.pi, BINS))  # (order, BINS)
