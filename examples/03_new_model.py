"""A model of your own: one file, one line to register it, and proofs, training and enhancement are there.

    python examples/03_new_model.py [--minutes 3 --epochs 10 --out runs/new_model]

Generative story, for each frame n: A-VAE's, with a mixture of three Gaussians for its latent prior.

    alpha_n ~ Cat(pi)                          as (11), of three kinds of sound: voiced, unvoiced, silent, say
    z_n | alpha_n ~ N(mu_k, sigma_k I)         as (10), learned
    s_n | z_n ~ N_c(0, diag sigma(z_n))        (1)

The guide is q(z_n | s_n) r(alpha_n): one audio encoder for all kinds, r(alpha_n) in closed form (22). Nobody says which
frames are of which kind. Needs the extras `dev` (pytest) and `synth` (synthetic talkers), and a checkout (the tests).
"""

import argparse
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Categorical, Independent, Normal
from torch import Tensor, nn

import pyro_avse
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.noise import mix_at_snr
from pyro_avse.data.talker.synth import synthesise_corpus
from pyro_avse.distributions import ComplexNormal
from pyro_avse.enhancement.demo import CLIPS
from pyro_avse.metrics import score
from pyro_avse.models import MODELS
from pyro_avse.models.mixture import (
    component_negative_elbo,
    select_component,
    update_responsibilities,
)
from pyro_avse.models.nets import AudioEncoder, Decoder, IsotropicPrior
from pyro_avse.training.recipe import Recipe, Training


class ThreeKinds(nn.Module):
    """What pyro_avse/typing.py asks of a speech prior: four facts, a Pyro pair, and five functions for test time."""

    num_components, uses_lips, requires_lips = 3, False, False
    components_see: tuple[bool, ...] = (False, False, False)
    mixing_weight: Tensor

    def __init__(self, *, num_freqs: int = 513, latent_dim: int = 32, hidden: int = 128) -> None:
        super().__init__()
        self.num_freqs, self.latent_dim = num_freqs, latent_dim
        self.options = {"num_freqs": num_freqs, "latent_dim": latent_dim, "hidden": hidden}
        priors = [IsotropicPrior(latent_dim) for _ in range(3)]
        for prior in priors:
            nn.init.normal_(prior.mean)  # from one place they would learn the same
        self.priors = nn.ModuleList(priors)
        self.audio_encoder = AudioEncoder(num_freqs, hidden, latent_dim)
        self.decoder = Decoder(latent_dim, hidden, num_freqs)
        self.register_buffer("mixing_weight", torch.full((3,), 1 / 3))

    def model(self, power: Tensor, lips: Tensor | None = None, **not_used: Any) -> None:
        prior = self.latent_prior(lips)
        with pyro.plate("frame", len(power)):
            alpha = pyro.sample("alpha", Categorical(self.mixing_weight))  # (11)
            mean, scale = (select_component(p, alpha) for p in (prior.mean, prior.stddev))
            z = pyro.sample("z", Normal(mean, scale).to_event(1))  # (10)
            pyro.sample("s", ComplexNormal(0, self.decoder(z)).to_event(1), obs=power.sqrt())  # (1)

    def guide(self, power: Tensor, lips: Tensor | None = None, **given: Any) -> None:
        heard, r = given.get("encoder_power"), given.get("responsibilities")
        q = self.encode(power if heard is None else heard, lips)
        if r is None:
            J = component_negative_elbo(self, power, lips, encoder_power=heard)
            r = update_responsibilities(J, self.mixing_weight)  # (22)
        r = Categorical(r.detach().movedim(0, -1))
        with pyro.plate("frame", len(power)):
            alpha = pyro.sample("alpha", r, infer={"enumerate": "parallel"})
            mean, scale = (select_component(p, alpha) for p in (q.mean, q.stddev))
            pyro.sample("z", Normal(mean, scale).to_event(1))  # (3), whatever alpha

    def visual_features(self, lips: Tensor | None) -> Tensor | None:
        return lips

    def latent_prior(self, lips: Tensor | None) -> Independent:
        mean = torch.stack([prior().mean for prior in self.priors])
        scale = torch.stack([prior().stddev for prior in self.priors])
        return Normal(mean[:, None], scale[:, None]).to_event(1)  # batch (component, 1)

    def encode(self, power: Tensor, lips: Tensor | None) -> Independent:
        return self.audio_encoder(power).expand((3, *power.shape[:-1]))

    def initial_codes(self, power: Tensor, lips: Tensor | None) -> Tensor:
        return self.audio_encoder(power).mean

    def log_variance(self, z: Tensor, lips: Tensor | None) -> Tensor:
        return self.decoder(z)[None]  # (1, ...): one decoder for all


MODELS["three_kinds"] = ThreeKinds  # the one line: now recipes, weight files and `enhance` know it

parser = argparse.ArgumentParser()
parser.add_argument("--minutes", type=float, default=3)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--out", type=Path, default=Path("runs/new_model"))
args = parser.parse_args()

# 1. The proofs that every model passes: the enumerated bound is brute force's, the fast targets are the Pyro joint, ...
folder, names = Path(__file__).parents[1], ("models", "noisy_speech", "mixture", "checkpoint")
proofs = [str(folder / f"tests/test_{name}.py") for name in names]
if pytest.main([*proofs, "-q", "-k", "three_kinds", "--assert=plain", "-p", "no:cacheprovider"]):
    raise SystemExit("three_kinds is not what its story tells")

# 2. Training, from the bundled A-VAE's networks; the three priors find their places around its N(0, I).
synthesise_corpus(args.out / "talkers", speakers=10, minutes=args.minutes, seed=0)
start = dict.fromkeys(["audio_encoder", "decoder"], "a_vae")
recipe = Recipe("three_kinds", initialise=start, training=Training(args.epochs, learning_rate=1e-4))
weights = pyro_avse.train(recipe, args.out / "talkers", args.out, resume=True)

# 3. Enhancement of a bundled clip, in a workshop's noise at 0 dB.
clean, noise = (load_audio(CLIPS / f"{name}.flac").waveform for name in ("talker", "workshop"))
mixture, _ = mix_at_snr(clean, noise, 0)
enhanced = pyro_avse.enhance(mixture, model=str(weights))
before, after = score(mixture, clean).si_sdr, score(enhanced.speech, clean).si_sdr
print(f"SI-SDR {before:.1f} -> {after:.1f} dB, kinds:", enhanced.responsibilities.mean(1).round(2))
