"""What comes out of a recording: speech and noise, at its own rate and level, and what the inference believes.

A notebook shows an `Enhanced` as players and a figure.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32

from pyro_avse.enhancement.uncertainty import Uncertainty, uncertainty_of
from pyro_avse.inference.uncertainty import draw_speech
from pyro_avse.typing import InputError, Separation, Spectrum

HEARD = 30.0
"""Seconds that a notebook's players hold at most: they stand inside of its file."""


@dataclass(frozen=True, repr=False)
class Enhanced:
    """What comes out of a recording; waveforms have its rate, length and level."""

    speech: Float32[np.ndarray, "sample"]
    recording: Float32[np.ndarray, "sample"]
    """As it came."""
    sample_rate: int
    speech_16k: Float32[np.ndarray, "sample_16k"]
    """The speech at 16 kHz where the mixture's peak is 1, for scoring."""
    responsibilities: Float[np.ndarray, "component frame"]
    """r(alpha_n): row 0 is audio, the paper's pi_n; one row of ones for VAE-MM without lips, which is then A-VAE. Where
    `chains_disagree` it says where the chains began, and is no posterior."""
    chains_disagree: Bool[np.ndarray, "frame"] | None
    """Frames whose chains sat in different modes, as `Separation.chains_disagree`."""
    frame_times: Float[np.ndarray, "frame"]
    """Frame centres, in seconds."""
    objective: Float[np.ndarray, "iteration"]
    separation: Separation
    """All that the scheme returned, chains included, on its device. Of a batch: this recording's, cut to its frames,
    but for `target`, which is the whole batch's, and `chains`, which is None."""
    restore: Callable[[Spectrum], Float32[np.ndarray, "sample"]]
    """Another spectrum of speech on the same grid, made into sound as `speech` was: of its rate, length and level."""
    unit: float
    """A spectrum times this is that of the recording at 16 kHz, at its level."""

    def __repr__(self) -> str:
        """Five lines: how long, how loud, how sure, how far."""
        seconds, (K, frames) = len(self.speech) / self.sample_rate, self.responsibilities.shape
        speech, noise = (
            float(np.square(w, dtype=np.float64).mean()) for w in (self.speech, self.noise)
        )
        ratio = (
            "no noise"
            if noise == 0
            else f"{10 * np.log10(speech / noise + 1e-12):.1f} dB over noise"
        )
        apart = self.chains_disagree
        known = (
            "one run of chains"
            if apart is None
            else f"chains disagree in {apart.mean():.0%} of them"
        )
        return "\n".join(
            (
                f"Enhanced: {seconds:.2f} s at {self.sample_rate} Hz",
                f"  speech     peak {np.abs(self.speech).max(initial=0):.3g}, {ratio}",
                f"  r(alpha)   {K} component{'s' * (K > 1)}, the first's mean {self.responsibilities[0].mean():.2f}",
                f"  frames     {frames}, {known}",
                f"  objective  {self.objective[0]:.6g} to {self.objective[-1]:.6g} in {len(self.objective)} iterations",
            )
        )

    def _repr_html_(self) -> str:
        """In a notebook: players of recording, speech and noise, and the figure."""
        from pyro_avse.enhancement.drawing import result_figure  # matplotlib takes a second to load
        from pyro_avse.html import picture, player, table

        heard = int(HEARD * self.sample_rate)
        parts = {"recording": self.recording, "speech": self.speech, "noise": self.noise}
        rows = [(name, player(w[:heard], self.sample_rate)) for name, w in parts.items()]
        cut = f", its first {HEARD:g} s" if len(self.speech) > heard else ""
        return table((f"{len(self.speech) / self.sample_rate:.2f} s{cut}", ""), rows) + picture(
            result_figure(self)
        )

    @property
    def noise(self) -> Float32[np.ndarray, "sample"]:
        """The recording minus the speech: rumble, clicks and offset that were taken off too."""
        return self.recording - self.speech

    def mix(self, strength: float) -> Float32[np.ndarray, "sample"]:
        """recording + strength (speech - recording): 0 is the recording, sample by sample, 1 the speech.

        Raises InputError for a strength outside of 0 to 1.
        """
        return mix(self.recording, self.speech, strength)

    def draws(self, count: int, *, seed: int = 0) -> list[Float32[np.ndarray, "sample"]]:
        """What the speech may have been as well: draws of its posterior, as waveforms like `speech`.

        Frames overlap, so a draw's sound is the mean of what two frames drew: it lies nearer to `speech` than the
        variance of one frame says. Raises InputError for a scheme without draws, and a count below 1.
        """
        rng = torch.Generator(device=self.separation.speech.device).manual_seed(seed)
        return [self.restore(s) for s in draw_speech(self.separation, count, rng=rng)]

    @property
    def uncertainty(self) -> Uncertainty:
        """How sure the speech is, coefficient by coefficient. Raises InputError for a scheme without draws."""
        return uncertainty_of(self.separation, self.frame_times, self.unit)


def mix(
    recording: Float32[np.ndarray, "sample"], speech: Float32[np.ndarray, "sample"], strength: float
) -> Float32[np.ndarray, "sample"]:
    """What `Enhanced.mix` says, of any two waveforms."""
    check_strength(strength)
    if strength == 1:  # to the last bit
        return speech
    return (recording + np.float32(strength) * (speech - recording)).astype(np.float32)


def check_strength(strength: float) -> None:
    """Raises InputError for a strength outside of 0 to 1."""
    if not 0 <= strength <= 1:
        raise InputError(f"strength is {strength}: give a number from 0, the recording, to 1")
