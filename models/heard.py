"""A speech prior as it is heard through a filter that is known: its variance times |h_f|^2.

    s_n | z_n, alpha_n ~ N_c(0, diag |h|^2 sigma_k(z_n, v_n))

When to use it: where the recording passed a filter that the training speech did not, as the high-pass that takes a
car's rumble off. Without it the prior expects power where there is none any more, and every code is wrong there.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pyro_avse.typing import Codes, FrameMask, Power

LEAST = 1e-2
"""|h_f|^2 below which nothing is said of the speech before: what is left there is mostly noise."""


class HeardThrough(nn.Module):
    """`prior` but for its `log_variance`, to which `log_response` is added; to enhance, not to train.

    Args:
        prior: any speech prior.
        log_response: log |h_f|^2, (freq,), in nats.
    """

    log_response: Tensor

    def __init__(self, prior: Any, log_response: Float[Tensor, "freq"]) -> None:
        super().__init__()
        self.prior = prior
        self.register_buffer("log_response", log_response)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("prior"), name)

    def within(self, *, mask: FrameMask | None = None, past: Power | None = None) -> "HeardThrough":
        """`SequencePrior.within`, heard through the same filter, which is taken off the speech before."""
        if past is not None:
            past = past / self.log_response.exp().clamp_min(LEAST)
        return HeardThrough(self.prior.within(mask=mask, past=past), self.log_response)

    def log_variance(
        self, z: Codes, lips: Tensor | None
    ) -> Float[Tensor, "component *batch frame freq"]:
        """log |h_f|^2 sigma_k(z, v)."""
        found: Tensor = self.prior.log_variance(z, lips)
        return found + self.log_response
