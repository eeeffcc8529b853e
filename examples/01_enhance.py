"""Enhance one noisy clip: first in one call, then by hand, one variational E- and M-step at a time.

    python examples/01_enhance.py [--iterations 100]

The recording is x = s + b: speech s from a trained prior, noise b from a non-negative matrix factorisation that is
fitted to this very recording. Equation numbers are those of Sadeghi & Alameda-Pineda, "Mixture of inference networks
for VAE-based audio-visual speech enhancement".
"""

import argparse

import numpy as np
import torch

import pyro_avse
from pyro_avse.data.lips.lips import lips_on_grid
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.noise import mix_at_snr
from pyro_avse.enhancement.demo import CLIPS
from pyro_avse.inference import VEM, RandomWalk, run_chains
from pyro_avse.inference.mean_field import MeanFieldTarget, latent_responsibilities
from pyro_avse.inference.nmf import initial_factors, is_nmf_update_H, is_nmf_update_W
from pyro_avse.inference.wiener import average_speech_variance, wiener_posterior
from pyro_avse.metrics import score
from pyro_avse.models.nmf_noise import NoiseModel, nmf_noise_variance
from pyro_avse.weights.checkpoint import load_prior

parser = argparse.ArgumentParser()
parser.add_argument("--iterations", type=int, default=100)
iterations = parser.parse_args().iterations

# 1. A clip of a talking face, and a workshop's noise added at 0 dB.
clean, noise = (load_audio(CLIPS / f"{name}.flac").waveform for name in ("talker", "workshop"))
lips = load_lips(CLIPS / "talker.npz")
mixture = mix_at_snr(clean, noise, 0)[0]
mixture = mixture / np.abs(mixture).max()

# 2. In one call.
enhanced = pyro_avse.enhance(
    mixture, lips.frames, lips.fps, model="min_vae_v2", inference=VEM(iterations=iterations)
)
before, after = score(mixture, clean), score(enhanced.speech, clean)
print(f"SI-SDR {before.si_sdr:.1f} -> {after.si_sdr:.1f} dB")
print(
    f"mean r(audio) = {enhanced.responsibilities[0].mean():.2f}: how often z_n looks like sound's"
)

# 3. By hand. Everything lives on the STFT's grid: time down, frequency across.
prior, stft = load_prior("min_vae_v2")
x = stft.analyse(torch.from_numpy(mixture.astype(np.float32)))
seen = torch.from_numpy(lips_on_grid(lips, stft.frame_times(len(x)), duration=len(mixture) / 16000))
rng = torch.Generator().manual_seed(0)

W, H = initial_factors(x.abs().square(), NoiseModel.paper(), rng=rng)  # noise variance W H (28)
z = prior.initial_codes(x.abs().square(), seen)[None]  # one chain, started at the lips' code
m, nu = x, torch.zeros_like(x.abs())  # r(s): to begin with, all is speech
r = torch.full((2, len(x)), 0.5)  # r(alpha_n), component 0 is audio

with torch.no_grad():
    for _iteration in range(iterations):
        # r(z): a Markov chain for every frame at once, target (36), proposal (37), acceptance (38)
        target = MeanFieldTarget(prior, seen, m.abs().square() + nu, r)
        chains = run_chains(RandomWalk(step_size=0.1), target, z, draws=10, warmup=30, seed=rng)
        z, draws = chains.state.z, chains.draws[0]
        # r(alpha): which of the two priors do the codes look like? (40)
        log_variance = prior.log_variance(draws, seen)
        r = latent_responsibilities(
            prior, draws, seen, log_variance, target.second_moment, mixing_weight=r.mean(-1)
        )
        # r(s): the Wiener filter with the harmonic mean of the speech variance (34), (35)
        gamma = average_speech_variance(log_variance, r)
        m, nu = wiener_posterior(x, gamma, nmf_noise_variance(W, H))
        # the noise, from the expected power of what is left (42), (43)
        V = (x - m).abs().square() + nu
        H = is_nmf_update_H(V, W, H, exponent=0.5)
        W = is_nmf_update_W(V, W, H, exponent=0.5)

    speech, _ = wiener_posterior(x, gamma, nmf_noise_variance(W, H))  # (45)

by_hand = stft.synthesise(speech, len(mixture)).numpy()
print(
    f"by hand {score(by_hand, clean).si_sdr:.1f} dB; accepted {chains.acceptance_rate.mean():.2f}"
)
