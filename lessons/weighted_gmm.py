"""Weighted-data clustering: a Gaussian mixture in which every observation says how far it can be trusted.

After I. Gebru, X. Alameda-Pineda, F. Forbes, R. Horaud, *EM Algorithms for Weighted-Data Clustering with Application
to Audio-Visual Scene Analysis*, TPAMI 2016. Derived here from the model statement; the equation numbers are ours.

The story. A camera finds faces, two microphones find where sound comes from, both as points in the picture. Some faces
are posters, some sounds are echoes. A point that the other sense confirms deserves more trust. So every point x_i in
R^d comes with a weight w_i > 0, and a cluster is tight for points of much weight, wide for points of little:

    z_i ~ Cat(pi)                  whose point this is                                                            (1)
    x_i | z_i = k, w_i ~ N(mu_k, Sigma_k / w_i)                                                                   (2)

**Fixed weights.** Let D_ik = (x_i - mu_k)' Sigma_k^-1 (x_i - mu_k) be the squared distance from the cluster. If w_i is
known, (2) has the density (w_i / 2 pi)^(d/2) |Sigma_k|^(-1/2) exp(-w_i D_ik / 2), and EM is nearly the usual one:

    E     eta_ik = p(z_i = k | x_i)  =  pi_k N(x_i; mu_k, Sigma_k / w_i) / sum over k                             (3)
    M     n_k = sum_i eta_ik     pi_k = n_k / n     mu_k = sum_i eta_ik w_i x_i / sum_i eta_ik w_i
          Sigma_k = sum_i eta_ik w_i (x_i - mu_k)(x_i - mu_k)' / n_k                                              (4)

A weight enters the sums over points, but not n_k: a point of little weight is still one point.

**Gamma weights.** What the other sense says of a weight is uncertain too. Let the weight be drawn before the point is:

    w_i ~ Gamma(alpha_i, beta_i)         (from a weight w we make alpha = w^2, beta = w: mean w, variance 1)      (5)

What depends on w_i in the joint of x_i and w_i is w_i^(alpha_i + d/2 - 1) exp(-w_i (beta_i + D_ik / 2)). Therefore

    w_i | x_i, z_i = k ~ Gamma(a_i, b_ik),   a_i = alpha_i + d/2,   b_ik = beta_i + D_ik / 2                      (6)

and the integral over w_i is the heavy-tailed Pearson type VII density (Student's t where alpha_i = beta_i):

    P(x_i; k) = Gamma(a_i) / Gamma(alpha_i) (2 pi beta_i)^(-d/2) |Sigma_k|^(-1/2) (1 + D_ik / 2 beta_i)^(-a_i)    (7)

    E     eta_ik = pi_k P(x_i; k) / sum over k        wbar_ik = E[w_i | x_i, z_i = k] = a_i / b_ik                (8)
    M     (4) with wbar_ik for w_i, because the log-joint is linear in w_i wherever mu and Sigma are in it

A point far from every cluster has a small wbar_ik: it loses its say, whatever weight it came with. Both E-steps are
exact, so the bound after them is the log-likelihood, sum_i log sum_k pi_k P(x_i; k). No iteration lowers it. (Each
Sigma_k stays >= floor I, or a cluster could close on one point. On that set the M-step's maximum has the eigenvectors
of (4)'s matrix, and its eigenvalues raised to the floor. So the bound still never falls.)

**How many clusters?** The shortest message tells (Figueiredo & Jain, 2002). A cluster has M = d + d(d+1)/2 numbers,
which are sent only as precisely as its n pi_k points tell them:

    length = -log p(x) + M/2 sum_k log(n pi_k / 12) + K/2 log(n / 12) + K (M + 1) / 2                             (9)

(Jeffreys' prior cancels a mean point's information.) The M-step in pi now maximises sum_k (n_k - M/2) log pi_k:

    pi_k = max(0, n_k - M/2) / sum_j max(0, n_j - M/2)                                                           (10)

A cluster that too few points support dies. We let one die at a time, so that others can take its points, and move one
cluster at a time, with an E-step before each. Between deaths the length never grows. When all is at rest, the weakest
cluster is taken away, down to one; of all ends the shortest is kept.
"""

import math
from dataclasses import dataclass

import pyro
import torch
from jaxtyping import Bool, Float, Int
from pyro.distributions import Categorical, Gamma, MultivariateNormal
from torch import Tensor

Points = Float[Tensor, "point dim"]
PerCluster = Float[Tensor, "point cluster"]


@dataclass(frozen=True)
class Mixture:
    """pi, mu and Sigma of (1), (2): the state of EM."""

    share: Float[Tensor, "cluster"]
    mean: Float[Tensor, "cluster dim"]
    covariance: Float[Tensor, "cluster dim dim"]

    def distance(self, x: Points) -> PerCluster:
        """D_ik, squared."""
        apart = x[:, None] - self.mean
        return torch.einsum("ikd,kde,ike->ik", apart, self.covariance.inverse(), apart)

    def without(self, k: int) -> "Mixture":
        keep = torch.arange(len(self.share)) != k
        pi, mu, Sigma = self.share[keep], self.mean[keep], self.covariance[keep]
        return Mixture(pi / pi.sum(), mu, Sigma)


@dataclass(frozen=True)
class FixedWeights:
    """Weights that are known."""

    w: Float[Tensor, "point"]

    def sample(self) -> Tensor:
        return self.w

    def log_marginal(self, x: Points, mixture: Mixture) -> PerCluster:
        """log N(x_i; mu_k, Sigma_k / w_i): (2)."""
        d, w = x.shape[-1], self.w[:, None]
        scale = d * (w / (2 * math.pi)).log() - mixture.covariance.logdet()
        return 0.5 * (scale - w * mixture.distance(x))

    def expected(self, x: Points, mixture: Mixture) -> PerCluster:
        return self.w[:, None].expand(-1, len(mixture.share))


@dataclass(frozen=True)
class GammaWeights:
    """Weights that are drawn: (5)."""

    alpha: Float[Tensor, "point"]
    beta: Float[Tensor, "point"]

    def sample(self) -> Tensor:
        return pyro.sample("w", Gamma(self.alpha, self.beta))

    def log_marginal(self, x: Points, mixture: Mixture) -> PerCluster:
        """log P(x_i; k), Pearson type VII: (7)."""
        d, alpha, beta = x.shape[-1], self.alpha[:, None], self.beta[:, None]
        a = alpha + d / 2
        constant = a.lgamma() - alpha.lgamma() - d / 2 * (2 * math.pi * beta).log()
        tail = a * (mixture.distance(x) / (2 * beta)).log1p()
        return constant - 0.5 * mixture.covariance.logdet() - tail

    def expected(self, x: Points, mixture: Mixture) -> PerCluster:
        """wbar_ik of (8)."""
        a, beta = self.alpha[:, None] + x.shape[-1] / 2, self.beta[:, None]
        return a / (beta + mixture.distance(x) / 2)


Weights = FixedWeights | GammaWeights
Ending = tuple[Mixture, list[float]]
"""Where a number of clusters came to rest, and the bound, or the length (9), on the way there."""


def model(mixture: Mixture, weights: Weights, x: Points) -> None:
    """The story as a Pyro program: (1), (5), (2)."""
    with pyro.plate("point", len(x)):
        z = pyro.sample("z", Categorical(mixture.share), infer={"enumerate": "parallel"})
        w = weights.sample()
        covariance = mixture.covariance[z] / w[..., None, None]
        pyro.sample("x", MultivariateNormal(mixture.mean[z], covariance), obs=x)


def e_step(x: Points, mixture: Mixture, weights: Weights) -> tuple[PerCluster, PerCluster, Tensor]:
    """eta, expected weights, and the bound (a number): (3) or (8)."""
    joint = mixture.share.log() + weights.log_marginal(x, mixture)
    eta = joint.softmax(-1)
    return eta, weights.expected(x, mixture), joint.logsumexp(-1).sum()


def m_step(x: Points, eta: PerCluster, w: PerCluster, floor: float) -> Mixture:
    """(4), with eigenvalues of Sigma_k no lower than the floor."""
    n_k, trust = eta.sum(0), eta * w
    mean = trust.mT @ x / trust.sum(0)[:, None]
    apart = x[:, None] - mean
    S = torch.einsum("ik,ikd,ike->kde", trust, apart, apart) / n_k[:, None, None]
    values, vectors = torch.linalg.eigh(S)
    return Mixture(n_k / len(x), mean, (vectors * values.clamp_min(floor)[:, None]) @ vectors.mT)


def em(x: Points, weights: Weights, start: Mixture, iterations: int, floor: float = 1e-6) -> Ending:
    """EM for a given number of clusters, with the bound before each M-step."""
    mixture, bounds = start, []
    for _ in range(iterations):
        eta, w, bound = e_step(x, mixture, weights)
        bounds.append(float(bound))
        mixture = m_step(x, eta, w, floor)
    return mixture, bounds


def message_length(x: Points, mixture: Mixture, weights: Weights) -> Tensor:
    """(9), in nats."""
    n, M, K = len(x), x.shape[-1] * (x.shape[-1] + 3) / 2, len(mixture.share)
    precision = M / 2 * (n * mixture.share / 12).log().sum() + K / 2 * math.log(n / 12)
    return precision + K * (M + 1) / 2 - e_step(x, mixture, weights)[2]


def shorten(x: Points, weights: Weights, mixture: Mixture, floor: float = 1e-6) -> list[Ending]:
    """From many clusters down to one by (10), the most first. A sweep that gains 0.01 nats or less is rest."""
    M, endings = x.shape[-1] * (x.shape[-1] + 3) / 2, []
    while True:
        lengths = [float(message_length(x, mixture, weights))]
        while len(lengths) < 2 or lengths[-2] - lengths[-1] > 0.01:
            for k in range(len(mixture.share)):
                eta, w, _ = e_step(x, mixture, weights)
                support = eta.sum(0) - M / 2
                if support.min() <= 0 and len(support) > 1:
                    mixture, lengths = mixture.without(int(support.argmin())), []
                    break
                moved = m_step(x, eta, w, floor)
                mean, covariance = mixture.mean.clone(), mixture.covariance.clone()
                mean[k], covariance[k] = moved.mean[k], moved.covariance[k]
                mixture = Mixture(support / support.sum(), mean, covariance)
            lengths.append(float(message_length(x, mixture, weights)))
        endings.append((mixture, lengths))
        if len(mixture.share) == 1:
            return endings
        mixture = mixture.without(int(mixture.share.argmin()))


def scattered(x: Points, clusters: int, rng: torch.Generator) -> Mixture:
    """A start: clusters as wide as a share of the data, on points each far from those before it (k-means++)."""
    means = x[torch.randint(len(x), (1,), generator=rng)]
    for _ in range(clusters - 1):
        nearest = torch.cdist(x, means).square().amin(1)
        means = torch.cat([means, x[torch.multinomial(nearest, 1, generator=rng)]])
    spread = x.mT.cov() / clusters
    return Mixture(x.new_full((clusters,), 1 / clusters), means, spread.repeat(clusters, 1, 1))


def draw(mixture: Mixture, weights: GammaWeights, rng: torch.Generator) -> tuple[Tensor, ...]:
    """x, w, z from (1), (5), (2)."""
    z = mixture.share.multinomial(len(weights.alpha), replacement=True, generator=rng)
    w = torch._standard_gamma(weights.alpha, generator=rng) / weights.beta
    noise = torch.randn(mixture.mean[z].shape, generator=rng, dtype=w.dtype) / w.sqrt()[:, None]
    factor = torch.linalg.cholesky(mixture.covariance)[z]
    return mixture.mean[z] + (factor @ noise[..., None])[..., 0], w, z


@dataclass(frozen=True)
class Scene:
    """Points in a picture of 640 x 480 pixels, and whose each is (-1: clutter)."""

    x: Points
    heard: Bool[Tensor, "point"]
    person: Int[Tensor, "point"]
    centre: Float[Tensor, "person 2"]


def draw_scene(rng: torch.Generator, people: int = 3, clutter: int = 40) -> Scene:
    """Of each person 60 faces (12 pixels about the centre) and 40 sounds (35); in each sense clutter anywhere."""
    across = (torch.arange(people) + 0.5) * 640 / people
    centre = torch.stack([across, 160 + 160 * torch.rand(people, generator=rng)], 1)
    x, person, heard = [], [], []
    for sound, count, spread in ((False, 60, 12.0), (True, 40, 35.0)):
        of = torch.arange(people).repeat_interleave(count)
        x.append(centre[of] + spread * torch.randn(len(of), 2, generator=rng))
        x.append(torch.tensor([640.0, 480.0]) * torch.rand(clutter, 2, generator=rng))
        person += [of, torch.full((clutter,), -1)]
        heard += [sound] * (len(of) + clutter)
    return Scene(torch.cat(x), torch.tensor(heard), torch.cat(person), centre)


def cross_modal_weights(scene: Scene, reach: float = 30.0) -> Float[Tensor, "point"]:
    """How much of the other sense is near a point: a Gaussian kernel of `reach` pixels, scaled to a mean of 1."""
    near = (-0.5 * (torch.cdist(scene.x, scene.x) / reach).square()).exp()
    w = (near * (scene.heard[:, None] != scene.heard)).sum(1) + 1e-2  # never zero
    return w / w.mean()
