"""Analysis is the DFT it claims to be; synthesis gives the waveform back exactly, at any length."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import ShortTimeFFT

from pyro_avse.stft import STFT
from pyro_avse.typing import InputError

PAPER = STFT()
SINE = np.sin(np.pi * (np.arange(1024) + 0.5) / 1024)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    waveform = torch.randn(*shape, generator=rng, dtype=dtype)
    return waveform / waveform.abs().max()


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(1, 5000),
    n_fft=st.sampled_from([64, 255, 512, 1024]),
    overlap=st.floats(0.25, 0.98),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_synthesis_inverts_analysis(
    num_samples: int, n_fft: int, overlap: float, dtype: torch.dtype
) -> None:
    stft = STFT(n_fft, max(1, int(n_fft * (1 - overlap))))
    waveform = noise(2, num_samples, dtype=dtype)
    spectrum = stft.analyse(waveform)
    assert spectrum.shape == (2, stft.num_frames(num_samples), n_fft // 2 + 1)
    restored = stft.synthesise(spectrum, num_samples)
    assert restored.dtype == dtype
    assert (restored - waveform).abs().max() < (1e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("num_samples", [1, 532, 533, 534, 1066, 1067, 10 * 533 + 520])
def test_every_length_around_a_hop_is_restored(num_samples: int) -> None:
    waveform = noise(num_samples, dtype=torch.float32)
    restored = PAPER.synthesise(PAPER.analyse(waveform), num_samples)
    assert (restored - waveform).abs().max() < 1e-6


def test_one_frame_is_a_direct_dft() -> None:
    waveform = noise(4000).numpy()
    spectrum = PAPER.analyse(torch.from_numpy(waveform)).numpy()
    t, f = np.arange(1024), np.arange(513)
    dft = np.exp(-2j * np.pi * np.outer(f, t) / 1024)
    middle = waveform[4 * 533 - 512 : 4 * 533 + 512]
    assert np.allclose(spectrum[4], dft @ (SINE * middle), atol=1e-10)
    first = np.concatenate([np.zeros(512), waveform[:512]])
    assert np.allclose(spectrum[0], dft @ (SINE * first), atol=1e-10)
    assert not np.allclose(spectrum[4], dft @ (np.hanning(1024) * middle), atol=1e-3)


def test_all_frames_agree_with_scipy() -> None:
    waveform = noise(5000).numpy()
    reference = ShortTimeFFT(SINE, 533, fs=16000, fft_mode="onesided", phase_shift=None)
    num_frames = PAPER.num_frames(5000)
    expected = reference.stft(waveform, p0=0, p1=num_frames).T
    assert np.allclose(PAPER.analyse(torch.from_numpy(waveform)).numpy(), expected, atol=1e-10)


def test_every_sample_lies_between_two_frame_centres_under_a_weight_of_093() -> None:
    for num_samples in range(1, 4000, 7):
        last_centre = (PAPER.num_frames(num_samples) - 1) * 533
        assert num_samples <= last_centre < num_samples + 533
    d = np.arange(533)  # samples after a centre; the next centre is 533 - d ahead
    window = np.pad(SINE, 100)
    weights = window[612 + d] ** 2 + window[612 + d - 533] ** 2
    assert 0.93 < weights.min() < 0.94


def test_synthesis_is_the_least_squares_inverse_of_a_modified_spectrum() -> None:
    stft = STFT(16, 7)
    rng = torch.Generator().manual_seed(1)
    num_samples = 40
    shape = stft.analyse(torch.zeros(num_samples)).shape
    spectrum = torch.randn(shape, generator=rng, dtype=torch.complex128)
    # The windowed frames are a linear map A of the samples; solve min |A x - frames|^2 directly.
    eye = torch.eye(num_samples, dtype=torch.float64)
    columns = torch.fft.irfft(stft.analyse(eye), n=16).reshape(num_samples, -1).mT
    frames = torch.fft.irfft(spectrum, n=16).reshape(-1)
    expected = torch.linalg.lstsq(columns, frames).solution
    assert torch.allclose(stft.synthesise(spectrum, num_samples), expected, atol=1e-12)


def test_leading_axes_are_independent_utterances() -> None:
    waveform = noise(2, 3, 2000)
    spectrum = PAPER.analyse(waveform)
    assert torch.equal(spectrum[1, 2], PAPER.analyse(waveform[1, 2]))
    restored = PAPER.synthesise(spectrum, 2000)
    assert restored.shape == waveform.shape
    assert torch.allclose(restored[1, 2], waveform[1, 2])


def test_zero_padding_a_clip_leaves_its_frames_as_they_are() -> None:
    waveform = noise(3000)
    padded = torch.nn.functional.pad(waveform, (0, 5000))
    num_frames = PAPER.num_frames(3000)
    assert torch.equal(PAPER.analyse(padded)[:num_frames], PAPER.analyse(waveform))


def test_gradients_flow_through_both() -> None:
    stft = STFT(8, 3)
    waveform = noise(2, 10).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: stft.synthesise(2 * stft.analyse(x), 10), waveform)


def test_frame_times_are_the_centres() -> None:
    assert PAPER.frame_times(3).tolist() == [0, 533 / 16000, 1066 / 16000]
    assert PAPER.frame_times(2, sample_rate=8000)[1] == 533 / 8000
    impulse = torch.zeros(4000)
    impulse[3 * 533] = 1
    assert PAPER.analyse(impulse).abs().sum(-1).argmax() == 3


@pytest.mark.parametrize(("n_fft", "hop"), [(1024, 0), (1024, -1), (1024, 769), (1, 1), (0, 1)])
def test_hops_that_lose_samples_are_refused(n_fft: int, hop: int) -> None:
    with pytest.raises(InputError, match="sum to under"):
        STFT(n_fft, hop)


def test_unusable_inputs_are_refused() -> None:
    assert STFT(1024, 768).hop == 768
    with pytest.raises(InputError, match="0 samples"):
        PAPER.analyse(torch.zeros(0))
    with pytest.raises(InputError, match="int16"):
        PAPER.analyse(torch.zeros(2000, dtype=torch.int16))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\(3, 513\), 2000 samples need \(5, 513\)"):
        PAPER.synthesise(torch.zeros(3, 513, dtype=torch.complex64), 2000)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_it_runs_on_the_device_of_its_input() -> None:
    waveform = noise(2, 5000, dtype=torch.float32).cuda()
    spectrum = PAPER.analyse(waveform)
    restored = PAPER.synthesise(spectrum, 5000)
    assert spectrum.is_cuda
    assert restored.is_cuda
    assert (restored - waveform).abs().max() < 1e-6
