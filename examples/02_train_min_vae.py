"""Train a MIN-VAE from nothing: synthetic talkers, then A-VAE, V-VAE and their mixture, in three stages.

    python examples/02_train_min_vae.py [--minutes 10 --epochs 20 --out runs/lesson]

Needs the extra `synth`. With a corpus of your own, pass its folder as `data` below instead.
"""

import argparse
import json
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import Adam

from pyro_avse import train
from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.data.talker.synth import synthesise_corpus
from pyro_avse.training.frames import load_frames
from pyro_avse.training.recipe import Data, Recipe, Training
from pyro_avse.weights.checkpoint import load_prior

parser = argparse.ArgumentParser()
parser.add_argument("--minutes", type=float, default=10)
parser.add_argument("--speakers", type=int, default=20)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--out", type=Path, default=Path("runs/lesson"))
args = parser.parse_args()

# 1. Speech with lips. Synthetic speech is digitally silent between words; the corpus adds a noise floor, since a prior
#    that has only seen zeros there believes that nothing can be quiet speech.
data = args.out / "talkers"
synthesise_corpus(data, speakers=args.speakers, minutes=args.minutes, seed=0)

# 2. The two single-modality VAEs. Both generate s_n from z_n ~ N(0, I) (1), (2); their guides look at the sound (3) or
#    at the lips (6). V-VAE's decoder starts as A-VAE's.
settings = Training(epochs=args.epochs, batch_size=128, learning_rate=1e-3, schedule="cosine")
size = {"latent_dim": 16, "hidden": 64, "features": 128}
a_vae = train(
    Recipe("a_vae", options={"latent_dim": 16, "hidden": 64}, training=settings),
    [data],
    args.out / "a_vae",
    resume=True,
)
v_vae = train(
    Recipe("v_vae", options=size, initialise={"decoder": str(a_vae)}, training=settings),
    [data],
    args.out / "v_vae",
    resume=True,
)

# 3. Their mixture: alpha_n says whose code z_n is (10), (11), and is enumerated, not sampled. Each step computes
#    r(alpha_n) in closed form (22) from that step's own draws; pi is its mean (25) after every epoch.
min_vae = train(
    Recipe(
        "min_vae_v2",
        options=size,
        initialise={
            "audio_encoder": str(a_vae),
            "decoder": str(a_vae),
            "visual_encoder": str(v_vae),
        },
        data=Data(noise_floor_db=40),
        training=settings,
    ),
    [data],
    args.out / "min_vae",
    resume=True,
    progress=lambda row: print(json.dumps({k: row[k] for k in ("epoch", "valid_elbo")})),
)

# 4. The weights are a speech prior; how much of the code comes from the sound?
prior, stft = load_prior(min_vae)
print("pi =", [round(p, 3) for p in prior.mixing_weight.tolist()])

# 5. The same pair under plain Pyro. The wrapper matters: without `pyro.module` SVI returns a loss and trains nothing.
prior.requires_grad_(True)
frames = load_frames(
    find_utterances(data, "train"), stft, with_lips=True, noise_floor_db=40, seed=0
)


def model(power: torch.Tensor, lips: torch.Tensor) -> None:
    pyro.module("prior", prior)
    prior.model(power, lips)


pyro.clear_param_store()
assert frames.lips is not None
svi = SVI(model, prior.guide, Adam({"lr": 1e-4}), TraceEnum_ELBO(max_plate_nesting=1))
for step in range(3):
    batch = torch.randperm(len(frames))[:128]
    loss = svi.step(frames.power[batch], frames.lips[batch]) / len(batch)
    print(f"pyro.infer.SVI step {step}: {loss:.1f} nats a frame")
