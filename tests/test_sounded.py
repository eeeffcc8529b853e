"""Where draws of the program and recordings are alike: noise as sound, and the edges. (28)"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.enhancement.sounded import overlap, sounded, sounded_noise
from pyro_avse.stft import STFT
from pyro_avse.training import pairs
from pyro_avse.typing import Guess

FREQS = 33


@pytest.mark.parametrize("stft", [STFT(n_fft=64, hop=33), STFT(n_fft=64, hop=16)])
def test_noise_is_heard_as_a_sound_of_the_variance_that_is_said(stft: STFT) -> None:
    """Analysis of its synthesis is itself, inside; what is drawn is far from it. The ratio's z is under 6 at each of
    some 300 coefficients (false alarm: 1e-6), and over it for the variance as it was before.
    """
    torch.manual_seed(0)
    edge, draws = overlap(stft), 2000
    variance = torch.ones(14 + 2 * edge, FREQS)
    variance[:, 12] *= 100
    variance[6 + edge] *= 30
    b = variance.sqrt() * torch.randn(draws, *variance.shape, dtype=torch.complex64)
    heard, said = sounded(b, variance[None], stft)
    assert heard.shape == (draws, 14, FREQS)

    def away(spectrum: Tensor) -> float:
        again = stft.analyse(stft.synthesise(spectrum, (spectrum.shape[1] - 1) * stft.hop))
        error = (again - spectrum)[:, edge:-edge].abs().square().sum()
        return float(error / spectrum[:, edge:-edge].abs().square().sum())

    assert away(heard) < 1e-6 < 0.4 < away(b)

    def z_score(variance: Tensor) -> float:
        ratio = (heard.abs().square() / variance).mean(0)[:, 2:-2]  # 0 Hz and the last are real
        return float((ratio - 1).abs().max() * draws**0.5)

    assert z_score(said) < 6 < z_score(variance[edge:-edge])
    torch.manual_seed(0)
    drawn = sounded_noise(14, stft, utterances=50)
    assert drawn.noise.shape == drawn.variance.shape == (50, 14, FREQS)
    assert away(drawn.noise) < 1e-6
    assert (drawn.noise.abs().square() / drawn.variance).mean() == pytest.approx(1, abs=0.1)


@pytest.mark.usefixtures("float64")
def test_the_edges_of_a_recording_have_no_say(small_prior: Any, small_guide: Any) -> None:
    """Its first and last frame reach beyond it: they are heard as their neighbours are, whatever is in them."""
    guide = small_guide(small_prior("a_vae"))
    power = torch.empty(2, 9, 7, dtype=torch.float64).exponential_()
    mask = torch.arange(9) < torch.tensor([9, 6])[:, None]
    faint = power.clone()
    faint[:, 0] *= 1e-6
    faint[0, 8], faint[1, 5] = 1e-9, 1e-9
    for q, other in zip(
        parts(guide.guess(power, mask=mask)), parts(guide.guess(faint, mask=mask)), strict=True
    ):
        assert torch.equal(q, other)
    faint[:, 3] *= 2
    moved = parts(guide.guess(faint, mask=mask))
    assert not torch.allclose(moved[0], parts(guide.guess(power, mask=mask))[0])
    for frames in (1, 2):
        assert parts(guide.guess(power[:, :frames]))[0].isfinite().all()


def test_among_voices_speech_is_not_the_faintest(
    tiny_corpus: Path, tiny_prior: Any, small_guide: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SNRs of 80 draws, over frames and frequencies: from -22 dB on, or from -10 dB where all have other voices."""
    prior = tiny_prior("a_vae", num_freqs=33).requires_grad_(False)
    stft = STFT(n_fft=64, hop=32)
    speech = pairs.load_speech(find_utterances(tiny_corpus, "train"), small_guide(prior), stft)
    for share, lowest in ((0.0, -22), (1.0, -10)):
        monkeypatch.setattr(pairs, "BABBLES", share)
        torch.manual_seed(0)
        drawn = pairs.draw_pairs(speech, utterances=80, num_frames=60, stft=stft)
        noise = drawn.log_noise.exp() - pairs.FAINTEST_NOISE
        snr = 10 * (drawn.speech.mean((1, 2)) / noise.mean((1, 2))).log10()
        assert lowest - 0.5 < snr.min() < lowest + 4
        assert 20 < snr.max() < 25.5
    one = pairs.draw_pairs(speech, utterances=4, num_frames=60, stft=stft, snr=(-20.0, -20.0))
    snr = one.speech.mean((1, 2)) / (one.log_noise.exp() - pairs.FAINTEST_NOISE).mean((1, 2))
    assert torch.allclose(snr.log10(), torch.tensor(-2.0), atol=0.05)  # what is asked for is drawn


def parts(q: Guess) -> list[Tensor]:
    return [q.codes.mean, q.log_gain.mean, q.response.mean, q.log_noise.mean]
