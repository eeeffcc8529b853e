"""Networks over time: torch's own LSTMs, and priors that start as A-VAE."""

from typing import Any

import pytest
import torch
from torch import nn

from pyro_avse.models import MODELS
from pyro_avse.models.dynamical import Dynamical
from pyro_avse.models.over_time import Recurrence

pytestmark = pytest.mark.usefixtures("float64")
STORIES = [n for n, kind in MODELS.items() if issubclass(kind, Dynamical) and n[:3] != "av_"]


def test_memory_is_carried_by_lstms_as_torch_runs_them() -> None:
    """Both ways, with padding, is torch's own bidirectional LSTM on packed sequences."""
    ours, theirs = Recurrence(3, 4, "both"), nn.LSTM(3, 4, batch_first=True, bidirectional=True)
    for way, suffix in (("forwards", ""), ("backwards", "_reverse")):
        for key, value in ours.get_submodule(way).state_dict().items():
            theirs.state_dict()[key + suffix].copy_(value)
    x, mask = torch.randn(2, 5, 3), torch.arange(5) < torch.tensor([[5], [3]])
    packed = nn.utils.rnn.pack_padded_sequence(x, mask.sum(1), batch_first=True)
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    torch.testing.assert_close(ours(x, mask)[mask], expected[mask])
    torch.testing.assert_close(ours(x), theirs(x)[0])


@pytest.mark.parametrize("name", STORIES)
def test_a_prior_may_start_as_a_vae(name: str, random_power: Any) -> None:
    """With A-VAE's networks, as the recipes copy them, and memory still silent: A-VAE's prior, decoder and encoder."""
    sizes = {"num_freqs": 7, "latent_dim": 2, "hidden": 6}
    a_vae, prior, power = MODELS["a_vae"](**sizes), MODELS[name](**sizes).eval(), random_power(4, 7)
    for network in ("hidden", "log_variance"):
        source = a_vae.decoder.get_submodule(network)
        prior.decoder.get_submodule(network).load_state_dict(source.state_dict())
    for network in ("hidden", "mean", "log_variance"):
        source = a_vae.audio_encoder.get_submodule(network)
        prior.encoder.get_submodule(network).load_state_dict(source.state_dict())
    z = torch.randn(4, 2)
    torch.testing.assert_close(prior.log_variance(z, None), a_vae.log_variance(z, None))
    torch.testing.assert_close(prior.log_prior(z, None)[0], a_vae.latent_prior(None).log_prob(z)[0])
    q, expected = prior.encode(power, None), a_vae.encode(power, None)
    torch.testing.assert_close(q.mean, expected.mean)
    torch.testing.assert_close(q.stddev, expected.stddev)
