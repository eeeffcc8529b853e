"""alpha_1:N as a Markov chain: what each frame says of it, and what all frames say together. [Rabiner1989]

    alpha_1 ~ Cat(pi),   alpha_n | alpha_n-1 = j ~ Cat(A_j)

Given alpha_1:N the frames are independent, so all that a frame says is its *evidence* e_nk = log p(frame n | alpha_n =
k), up to a constant. Forwards and backwards in time,

    f_1k = log pi_k + e_1k         f_nk = e_nk + log sum_j exp(f_n-1,j) A_jk
    b_Nj = 0                       b_nj = log sum_k A_jk exp(e_n+1,k + b_n+1,k)

logsumexp_k f_Nk is the log evidence of all frames, all K^N paths summed over, and r(alpha_n = k) = softmax_k(f_nk +
b_nk). With rows of A alike and equal to pi it is a mixture without memory.

[Rabiner1989] L. R. Rabiner, *A tutorial on hidden Markov models and selected applications in speech recognition*,
Proceedings of the IEEE 77, 1989.
"""

from contextlib import ExitStack

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.typing import Responsibilities

Evidence = Float[Tensor, "component *batch frame"]


def forward(
    evidence: Evidence,
    start: Float[Tensor, "component *batch"],
    transition: Float[Tensor, "component component"],
) -> Evidence:
    """f_nk: log p(frames 1 to n, alpha_n = k), D15. `start` is pi and broadcasts; e is -inf where alpha_n is not k."""
    log_A = transition.log().reshape(*transition.shape, *[1] * (evidence.dim() - 2))
    frames = evidence.unbind(-1)
    f = [start.log() + frames[0]]
    for e in frames[1:]:
        f.append(e + torch.logsumexp(f[-1][:, None] + log_A, 0))
    return torch.stack(f, -1)


def backward(evidence: Evidence, transition: Float[Tensor, "component component"]) -> Evidence:
    """b_nk: log p(frames after n | alpha_n = k)."""
    log_A = transition.log().reshape(*transition.shape, *[1] * (evidence.dim() - 2))
    b = [torch.zeros_like(evidence[..., 0])]
    for e in evidence[..., 1:].flip(-1).unbind(-1):
        b.append(torch.logsumexp(log_A + (e + b[-1])[None], 1))
    return torch.stack(b[::-1], -1)


def smooth(
    evidence: Evidence,
    start: Float[Tensor, "component *batch"],
    transition: Float[Tensor, "component component"],
) -> tuple[Float[Tensor, "*batch frame"], Responsibilities]:
    """log p(frame n | frames before), whose sum is the log evidence of all, and r(alpha_n = k) by all of them, D16."""
    f = forward(evidence, start, transition)
    total = torch.logsumexp(f, 0)
    frames = total.diff(dim=-1, prepend=torch.zeros_like(total[..., :1]))
    return frames, torch.softmax(f + backward(evidence, transition), 0)


def utterance_plates(utterances: tuple[int, ...]) -> ExitStack:
    """A plate for each utterance axis."""
    plates = ExitStack()
    for dim, size in enumerate(reversed(utterances), start=1):
        plates.enter_context(pyro.plate(f"utterance_{dim}", size, dim=-dim))
    return plates
