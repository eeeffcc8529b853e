"""A causal guide: what it may hear, block by block, and without a level."""

from typing import Any

import pytest
import torch

from pyro_avse.inference.guess import louder
from pyro_avse.models.guide import NoisyGuide


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("ahead", [0, 2])
def test_a_causal_guide_hears_no_more_than_it_may_and_goes_on_from_block_to_block(
    ahead: int,
    small_prior: Any,
    small_guide: Any,
) -> None:
    prior = small_prior("a_vae")
    power = torch.rand(12, 7)
    later = power.clone()
    later[8:] = 5.0
    for causal in (True, False):
        guide = small_guide(prior, causal=causal, ahead=ahead if causal else 0).eval()
        past, changed = (guide.guess(p).codes.mean[0, :8] for p in (power, later))
        same = torch.isclose(past, changed).all(-1)
        assert same.tolist() == ([True] * (8 - ahead) + [False] * ahead if causal else [False] * 8)
    guide = small_guide(prior, causal=True, ahead=ahead).eval()
    whole, memory, blocks = guide.guess(power), None, []
    for block in torch.cat([power, torch.zeros(ahead, 7)]).split((2, 4, 1, 5 + ahead)):
        q, memory = guide.carry_on(block, memory)
        blocks.append(q)
    assert len(blocks[0].log_noise.mean) == max(0, 2 - ahead)
    assert torch.allclose(torch.cat([b.codes.mean for b in blocks], 1), whole.codes.mean)
    noise = torch.cat([b.log_noise.mean for b in blocks])
    assert torch.allclose(noise, whole.log_noise.mean)
    assert torch.allclose(blocks[-1].log_gain.mean, whole.log_gain.mean)
    assert not torch.allclose(blocks[1].log_gain.mean, whole.log_gain.mean)


@pytest.mark.usefixtures("float64")
def test_a_causal_guide_needs_no_level(small_prior: Any, small_guide: Any) -> None:
    """A recording 20 dB louder: the same codes, and 20 dB more of noise and of speech. Padding changes nothing."""
    guide = small_guide(small_prior("a_vae"), causal=True).eval()
    power = 0.5 + torch.rand(9, 7)
    quiet, loud = guide.guess(power), guide.guess(100 * power)
    assert torch.allclose(quiet.codes.mean, loud.codes.mean, atol=1e-4)
    shift = torch.full((), 100.0).log()
    assert torch.allclose(loud.log_noise.mean - quiet.log_noise.mean, shift, atol=1e-4)
    assert torch.allclose(loud.log_gain.mean - quiet.log_gain.mean, shift, atol=1e-4)
    guide = small_guide(small_prior("a_vae"), causal=True, ahead=1).eval()
    quiet = guide.guess(power)
    padded = torch.cat([power, torch.full((3, 7), torch.nan)])
    q = guide.guess(padded, mask=torch.arange(12) < 9)
    assert torch.allclose(q.codes.mean[:, :9], quiet.codes.mean)
    assert torch.allclose(q.log_gain.mean, quiet.log_gain.mean)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("ahead", [0, 2])
def test_a_level_that_changes_on_the_way(ahead: int, small_prior: Any, small_guide: Any) -> None:
    """What was heard in another unit is turned into the new one, and goes on as if it had always been in it."""
    guide = small_guide(small_prior("a_vae"), causal=True, ahead=ahead).eval()
    power = 0.5 + torch.rand(9, 7)
    _, memory = guide.carry_on(power[:4], None)
    changed, _ = guide.carry_on(9 * power[4:], memory.rescaled(9.0))
    same, _ = guide.carry_on(power[4:], memory)
    assert torch.allclose(changed.codes.mean, same.codes.mean, atol=1e-4)
    back = louder(changed, 1 / 9)
    assert torch.allclose(back.log_noise.mean, same.log_noise.mean, atol=1e-4)
    assert torch.allclose(back.log_gain.mean, same.log_gain.mean, atol=1e-4)
    unchanged, _ = guide.carry_on(9 * power[4:], memory)
    assert not torch.allclose(unchanged.codes.mean, same.codes.mean, atol=1e-4)


@pytest.mark.usefixtures("float64")
def test_the_first_frame_has_no_say(small_prior: Any, small_guide: Any) -> None:
    """Half of it lies before the beginning; what comes second stands in its place."""
    guide = small_guide(small_prior("a_vae"), causal=True, ahead=2).eval()
    power = torch.rand(9, 7)
    other = torch.cat([torch.rand(1, 7), power[1:]])
    for q, r in (
        (guide.guess(power), guide.guess(other)),
        (guide.carry_on(power, None)[0], guide.carry_on(other, None)[0]),
    ):
        assert torch.equal(q.codes.mean, r.codes.mean)
        assert torch.equal(q.log_noise.mean, r.log_noise.mean)


@pytest.mark.usefixtures("float64")
def test_while_it_learns_a_causal_guide_knows_the_level_as_at_some_moment(
    small_prior: Any, small_guide: Any
) -> None:
    guide, power = small_guide(small_prior("a_vae"), causal=True), torch.rand(12, 7)
    power[0] = power[1]
    guide.eval()
    moments = [float(guide.guess(power[: 1 + n]).log_gain.mean) for n in range(12)]
    guide.train()
    torch.manual_seed(0)
    drawn = {round(float(guide.guess(power).log_gain.mean), 5) for _ in range(100)}
    assert drawn <= {round(m, 5) for m in moments}
    assert len(drawn) > 8


def test_only_a_causal_guide_can_be_told_how_far_it_hears_ahead(small_prior: Any) -> None:
    for options in ({"ahead": 2}, {"causal": True, "ahead": -1}):
        with pytest.raises(ValueError, match=r"ahead is -?\d: 0 or more, and 0 where causal"):
            NoisyGuide(small_prior("a_vae"), **options)
