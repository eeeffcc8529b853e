"""A prior with memory: draw speech from it, follow its story by hand in Pyro, and enhance a clip with it.

    python examples/06_memory.py [--iterations 6]

A-VAE takes every frame for itself. Under DKF, the deep Kalman filter, a frame's code depends on the code before:

    z_n | z_n-1 ~ N(mu(z_n-1), diag sigma(z_n-1)),   s_n | z_n ~ N_c(0, diag sigma(z_n))

so an utterance is one event: its density is of the whole path z_1:N, and a Markov chain moves all of it at once.
"""

import argparse

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import Normal

import pyro_avse
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.noise import mix_at_snr
from pyro_avse.distributions import ComplexNormal
from pyro_avse.enhancement.demo import CLIPS
from pyro_avse.inference import LDEM
from pyro_avse.metrics import score
from pyro_avse.weights.checkpoint import load_prior

parser = argparse.ArgumentParser()
parser.add_argument("--iterations", type=int, default=6)
iterations = parser.parse_args().iterations
torch.manual_seed(0)
dkf, stft = load_prior("dkf")

# 1. Draws of both stories: how much alike are the loudnesses of one frame and the next?
for name in ("a_vae", "dkf"):
    prior, _ = load_prior(name, guide=None)
    if name == "a_vae":
        z = prior.latent_prior(None).sample((300,)).reshape(300, -1)
    else:
        z = prior.latent_path((300,), None).sample()
    loudness = prior.log_variance(z, None)[0].mean(-1)
    alike = np.corrcoef(loudness[:-1], loudness[1:])[0, 1]
    print(f"{name}: neighbouring frames of what it draws are correlated by {alike:.2f}")


# 2. The story, frame by frame, in Pyro; and the vectorised program that training and inference use.
def story(power: torch.Tensor) -> None:
    z = torch.zeros(dkf.latent_dim)
    for n in pyro.markov(range(len(power))):
        mean, log_variance = dkf.move(z, None)
        z = pyro.sample(f"z_{n}", Normal(mean, torch.exp(0.5 * log_variance)).to_event(1))
        sigma = dkf.decoder(z, None)
        pyro.sample(f"s_{n}", ComplexNormal(0, sigma).to_event(1), obs=power[n].sqrt())


clean, noise = (load_audio(CLIPS / f"{name}.flac").waveform for name in ("talker", "workshop"))
power = stft.analyse(torch.from_numpy(clean.astype(np.float32))).abs().square()[10:20]
path = dkf.initial_codes(power, None)
by_hand = poutine.condition(story, {f"z_{n}": z for n, z in enumerate(path)})
at_once = poutine.condition(dkf.model, {"z": path})
for name, program in (("frame by frame", by_hand), ("all at once", at_once)):
    trace = poutine.trace(program).get_trace(power)
    print(f"log p(s, z) of ten frames, {name}: {trace.log_prob_sum().item():.2f}")

# 3. The same scheme under both, on a clip in a workshop's noise at 0 dB.
mixture = mix_at_snr(clean, noise, 0)[0]
mixture = mixture / np.abs(mixture).max()
print(f"the recording: {score(mixture, clean).si_sdr:.1f} dB")
for name in ("a_vae", "dkf"):
    found = pyro_avse.enhance(mixture, model=name, inference=LDEM(iterations=iterations))
    print(f"{name}: {score(found.speech, clean).si_sdr:.1f} dB")
