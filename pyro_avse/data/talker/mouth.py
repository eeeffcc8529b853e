"""A talking mouth: phonemes with their times in, a 67x67 grey video of lips out.

Every phoneme has a target for five articulators. Neighbouring targets blend by dominance functions
(Cohen & Massaro 1993, "Modeling coarticulation in synthetic visual speech"): articulator j at time
t is

    sum_i D_ij(t) T_ij / sum_i D_ij(t),    D_ij(t) = a_ij exp(-max(0, |t - c_i| - d_i / 4) / tau_i)

with target T, centre c and duration d of segment i. Sounds that need an articulator dominate it
(the lips of b, the rounding of u); the others take on what stands around them. Silence closes the
mouth.
"""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import gaussian_filter, gaussian_filter1d

SIZE = 67
"""Height and width of a frame in pixels."""
_REST = "_"
# opening, width, rounding, teeth, tongue: targets; then how far each dominates its neighbours
_TARGETS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {}


def _define(
    symbols: str, target: tuple[float, ...], dominance: tuple[float, ...] = (1, 1, 1, 1, 1)
) -> None:
    for symbol in symbols.split():
        _TARGETS[symbol] = (target, dominance)


_define(_REST, (0.0, 0.0, 0.0, 0.0, 0.0), (1.5, 0.5, 0.7, 1.5, 1.5))
_define("m b p", (-0.15, 0.0, 0.0, 0.0, 0.0), (14, 0.3, 0.2, 8, 8))
_define("f v ʋ", (0.12, 0.15, 0.0, 1.0, 0.0), (8, 0.6, 0.4, 8, 4))
_define("θ ð", (0.20, 0.15, 0.0, 0.7, 0.9), (4, 0.5, 0.3, 3, 6))
_define("s z", (0.16, 0.45, 0.0, 1.0, 0.0), (4, 1.2, 0.4, 5, 3))
_define("ʃ ʒ", (0.22, -0.1, 0.70, 0.9, 0.0), (4, 1, 4, 4, 3))
_define("t d n ɾ ɲ", (0.20, 0.1, 0.0, 0.6, 0.4), (2.5, 0.3, 0.2, 2, 2))
_define("l ɫ", (0.32, 0.1, 0.0, 0.4, 0.9), (2.5, 0.4, 0.3, 2, 4))
_define("ɹ r ɻ", (0.24, -0.1, 0.55, 0.3, 0.2), (2, 0.8, 2, 1.5, 1))
_define("w ʍ", (0.12, -0.3, 1.0, 0.0, 0.0), (5, 1, 8, 3, 2))
_define("j", (0.22, 0.5, 0.0, 0.5, 0.3), (2, 1.5, 0.8, 1.5, 1))
_define("k ɡ g ŋ x", (0.30, 0.1, 0.0, 0.3, 0.2), (0.8, 0.2, 0.2, 0.7, 0.8))
_define("h ʔ ɦ", (0.35, 0.0, 0.0, 0.2, 0.1), (0.3, 0.1, 0.1, 0.3, 0.3))
_define("i ᵻ", (0.30, 0.9, 0.0, 0.8, 0.3), (2, 3, 1.5, 2, 1))
_define("ɪ", (0.36, 0.55, 0.0, 0.7, 0.3), (1.5, 2, 1, 1.5, 1))
_define("e ɛ", (0.52, 0.55, 0.0, 0.7, 0.4), (2.5, 2, 1, 1.5, 1))
_define("æ a", (0.85, 0.45, 0.0, 0.8, 0.5), (3, 2, 1, 1.5, 1))
_define("ɑ ä", (1.00, 0.05, 0.1, 0.5, 0.4), (3, 1.5, 1, 1.2, 1))
_define("ʌ ɐ", (0.66, 0.15, 0.0, 0.6, 0.4), (2, 1, 0.7, 1, 1))
_define("ə", (0.40, 0.1, 0.05, 0.5, 0.3), (0.8, 0.4, 0.3, 0.7, 0.7))
_define("ɚ ɜ ɝ", (0.42, -0.05, 0.35, 0.4, 0.3), (2, 1.5, 2, 1, 1))
_define("ɒ ɔ", (0.75, -0.1, 0.65, 0.3, 0.3), (3, 1.5, 3, 1.2, 1))
_define("o", (0.48, -0.2, 0.85, 0.2, 0.2), (2.5, 1.5, 4, 1.2, 1))
_define("ʊ ɵ", (0.34, -0.15, 0.75, 0.3, 0.2), (1.5, 1, 3, 1, 1))
_define("u ʉ y ø œ", (0.22, -0.3, 1.0, 0.1, 0.1), (2.5, 1.5, 6, 1.5, 1))


@dataclass(frozen=True)
class Articulation:
    """What the mouth does, frame by frame; every field has shape (frame,)."""

    opening: Float[np.ndarray, " frame"]
    """Of the jaw and lips: 0 closed, 1 wide open, below 0 pressed together."""
    width: Float[np.ndarray, " frame"]
    """-1 narrow, 0 at rest, 1 spread."""
    rounding: Float[np.ndarray, " frame"]
    """0 flat, 1 protruded and round."""
    teeth: Float[np.ndarray, " frame"]
    """How much of the teeth shows where the lips are apart, 0 to 1."""
    tongue: Float[np.ndarray, " frame"]
    """How much of the tongue shows where the lips are apart, 0 to 1."""


def articulate(
    phonemes: list[tuple[str, float]],
    seconds: float,
    *,
    fps: float = 30.0,
    level: Float[np.ndarray, " frame"] | None = None,
    lead: float = 0.02,
) -> Articulation:
    """Curves of the articulators from phonemes (IPA, start in seconds) that last until `seconds`.

    Frame n shows the time (n + 0.5) / fps, and there are round(seconds * fps) frames. `level`
    (frame,) is the sound's amplitude over its own maximum: the mouth opens wider for loud vowels.
    The lips move `lead` seconds ahead of the sound, as lips do. An empty phoneme is a pause.
    """
    targets, dominance, centres, half_plateaus, decay = _segments(phonemes, seconds)
    times = (np.arange(round(seconds * fps)) + 0.5) / fps + lead
    away = np.abs(times[:, None] - centres) - half_plateaus
    reach = np.exp(-np.maximum(away, 0.0) / decay)  # (frame, segment)
    weight = reach[:, :, None] * dominance  # (frame, segment, articulator)
    curves = (weight * targets).sum(1) / (weight.sum(1) + 1e-9)
    opening, width, rounding, teeth, tongue = curves.astype(np.float32).T
    if level is not None:
        opening = np.where(opening > 0, opening * (0.65 + 0.55 * level), opening)
    return Articulation(opening, width, rounding, teeth, tongue)


def _segments(phonemes: list[tuple[str, float]], seconds: float) -> tuple[np.ndarray, ...]:
    """Targets and dominances (segment, 5); centres, half plateaus, time constants (segment,)."""
    starts = [start for _, start in phonemes] + [seconds]
    segments = [(_REST, 0.0, starts[0], 1.0)]
    for (name, start), end in zip(phonemes, starts[1:], strict=True):
        if not name and end - start < 0.08:  # too short to close the mouth for
            continue
        symbols = [symbol for symbol in name if symbol in _TARGETS] or [_REST if not name else "ə"]
        stress = 1.12 if "ˈ" in name else 0.92
        step = (end - start) / len(symbols)  # both halves of a diphthong or an affricate
        segments += [(s, start + n * step, step, stress) for n, s in enumerate(symbols)]
    targets = np.array([_TARGETS[symbol][0] for symbol, *_ in segments])
    targets[:, 0] *= [stress for *_, stress in segments]
    dominance = np.array([_TARGETS[symbol][1] for symbol, *_ in segments])
    begins, durations = np.array([(start, length) for _, start, length, _ in segments]).T
    resting = np.array([symbol == _REST for symbol, *_ in segments])
    half_plateaus = np.where(resting, durations / 2 - 0.06, durations / 4).clip(0)
    decay = np.where(dominance[:, 0] >= 8, 0.018, np.where(resting, 0.05, 0.035))
    return targets, dominance, begins + durations / 2, half_plateaus, decay


@dataclass(frozen=True)
class Face:
    """How a speaker's mouth looks: lengths in pixels of a 67x67 frame, tones from 0 black to 1."""

    mouth_y: float
    half_width: float
    upper_lip: float
    lower_lip: float
    bow: float
    """Depth of the notch in the upper lip, in its heights."""
    corners: float
    """How far the mouth's corners hang below its middle."""
    gape: float
    """Opening of the lips at opening 1."""
    skin: float
    lips: float
    """Tone of the lips over the skin's."""
    teeth: float
    teeth_pitch: float
    nose: float
    """Half the nose's width."""
    nose_y: float
    folds: float
    """Depth of the lines from the nose to the mouth's corners."""
    moustache: float
    """0 none, 1 full."""
    beard: float
    light: float
    """Where light comes from: -1 left, 1 right."""
    light_above: float
    blur: float
    noise: float
    """Standard deviation of the camera's noise, in grey levels of 255."""
    jitter: float
    """How far the head moves, in pixels."""
    expressive: float
    """Gain on every movement of the mouth."""
    texture: int
    """Seed of the skin's and hair's grain."""


def draw_face(rng: np.random.Generator, *, bearded: float = 0.25) -> Face:
    """A face at random; `bearded` is the probability of a moustache, a beard or both."""
    u = rng.uniform
    hair = int(rng.integers(1, 4)) if u() < bearded else 0
    thickness = u(0.7, 1.35)
    return Face(
        mouth_y=u(34, 40),
        half_width=u(15.5, 21),
        upper_lip=3.4 * thickness * u(0.8, 1.15),
        lower_lip=4.6 * thickness * u(0.85, 1.2),
        bow=u(0.1, 0.5),
        corners=u(-0.6, 1.8),
        gape=u(13, 18),
        skin=float(np.clip(rng.normal(0.56, 0.11), 0.28, 0.78)),
        lips=u(0.62, 0.88),
        teeth=u(0.66, 0.9),
        teeth_pitch=u(3.2, 4.6),
        nose=u(8, 11.5),
        nose_y=u(6, 12),
        folds=u(0.0, 0.16),
        moustache=u(0.45, 1) if hair & 1 else 0.0,
        beard=u(0.35, 1) if hair & 2 else 0.0,
        light=u(-1, 1),
        light_above=u(0.2, 1),
        blur=u(0.55, 1.0),
        noise=u(0.8, 3.5),
        jitter=u(0.3, 1.3),
        expressive=u(0.8, 1.15),
        texture=int(rng.integers(2**31)),
    )


def render(
    articulation: Articulation, face: Face, rng: np.random.Generator
) -> UInt8[np.ndarray, "frame 67 67"]:
    """The camera's view: grey frames 0..255; `rng` moves the head and makes the camera's noise."""
    frames = len(articulation.opening)
    wander = gaussian_filter1d(rng.standard_normal((frames + 60, 3)), 12, axis=0)[30:-30]
    pose = (6 * wander + 0.8 * rng.standard_normal(3)) * face.jitter
    moves = np.stack([getattr(articulation, field.name) for field in fields(articulation)], 1)
    moves = np.concatenate([moves, pose], 1).astype(np.float32)
    portrait = _portrait(face)
    lips = np.empty((frames, SIZE, SIZE), np.uint8)
    for start in range(0, frames, _BLOCK):
        block = slice(start, start + _BLOCK)
        image = _paint(moves[block], face, portrait)
        image += rng.standard_normal(image.shape, dtype=np.float32) * (face.noise / 255)
        lips[block] = np.clip(image * 255 + 0.5, 0, 255)
    return lips


_BLOCK = 16  # frames painted at once: small enough for the processor's cache
_CANVAS, _FINE = (
    56,
    3,
)  # a portrait's reach in pixels, its points a pixel


def _paint(moves: np.ndarray, face: Face, portrait: np.ndarray) -> np.ndarray:
    """Frames without noise from the five articulators and the head's pose, moves (frame, 8)."""
    opening, width, rounding, teeth, tongue, dx, dy, turn = moves.T[:, :, None, None]
    grid = np.arange(SIZE, dtype=np.float32)
    across = grid[None, None, :] - (SIZE - 1) / 2 - dx
    down = grid[None, :, None] - face.mouth_y - 0.7 * dy
    x, y = across + 0.015 * turn * down, down - 0.015 * turn * across  # about the mouth's middle

    apart = np.maximum(opening, 0) * face.expressive
    pressed = np.maximum(-opening, 0) * 3
    gape = face.gape * apart * (1 - 0.35 * rounding)
    spread = (0.13 * width - 0.36 * rounding) * face.expressive - 0.06 * apart
    half_width = face.half_width * (1 + spread)
    s = x / half_width
    arch = np.maximum(1 - s * s, 0)
    round_arch = np.sqrt(arch)
    middle = face.corners * (s * s - 0.3)
    inner_top = middle - 0.22 * gape * round_arch
    inner_low = middle + 0.78 * gape * round_arch
    plump = 1 + 0.3 * rounding - 0.45 * pressed - 0.12 * width
    bow = 1 - face.bow * _bump(s, 0.16) + 0.15 * _bump(np.abs(s) - 0.3, 0.2)
    outer_top = inner_top - face.upper_lip * plump * round_arch * np.sqrt(round_arch) * bow
    outer_low = inner_low + face.lower_lip * plump * round_arch
    between = _edge((1 - np.abs(s)) * half_width)

    # below the mouth the skin goes with the jaw
    chin_y = y - 0.78 * gape * np.clip(y / 6, 0, 1)
    row = ((chin_y + _CANVAS) * _FINE).astype(np.int32).clip(0, len(portrait) - 1)
    column = ((x + _CANVAS) * _FINE).astype(np.int32).clip(0, len(portrait) - 1)
    image = portrait.ravel()[row * len(portrait) + column]

    seam = (inner_top + inner_low) / 2
    upper = y < seam
    lip = np.where(
        upper,
        (y - outer_top) / np.maximum(inner_top - outer_top, 0.5),
        (y - inner_low) / np.maximum(outer_low - inner_low, 0.5),
    )
    # the upper lip faces down and is darker; the lower catches the light in its middle
    shine = 0.2 * face.light_above * _bump(s, 0.5) * _bump(lip - 0.4, 0.25)
    shade = np.where(upper, 0.97 - 0.2 * lip + 0.25 * shine, 0.92 - 0.12 * lip + shine)
    shade = face.skin * face.lips * (shade + 0.06 * face.light * s)
    image += _edge(y - outer_top) * _edge(outer_low - y) * between * (shade - image)
    hole = _edge(y - inner_top, 0.8) * _edge(inner_low - y, 0.8) * between
    image += hole * (_inside(x, y, s, inner_top, inner_low, teeth, tongue, face) - image)
    image *= 1 - 0.5 * _bump(y - seam, 0.9) * between * np.exp(-gape)
    image *= 1 + 0.004 * turn  # exposure
    return gaussian_filter(image, (0, face.blur, face.blur), truncate=2.5)


def _inside(
    x: np.ndarray,
    y: np.ndarray,
    s: np.ndarray,
    inner_top: np.ndarray,
    inner_low: np.ndarray,
    teeth: np.ndarray,
    tongue: np.ndarray,
    face: Face,
) -> np.ndarray:
    """The dark of the mouth, the tongue, and both rows of teeth, dimmer towards the corners."""
    image = np.full(y.shape, 0.12, np.float32)
    rise = (inner_low - inner_top) * (0.35 + 0.45 * tongue)
    shape = np.sqrt(np.maximum(1 - (s / 0.85) ** 2, 0))
    image += (
        _edge(y - inner_low + rise * shape, 2)
        * np.minimum(2 * tongue, 1)
        * (0.55 * face.skin - image)
    )
    light = face.teeth * _bump((s / 0.8) ** 2, 1) * (0.5 + 0.5 * face.light_above)
    light = light * (1 - 0.28 * np.maximum(np.cos(2 * np.pi / face.teeth_pitch * x), 0.5) ** 2)
    below = np.maximum(teeth - 0.35, 0)
    lower = _edge(y - inner_low + 4 * below, 1) * np.minimum(1.6 * below, 1)
    image += 0.75 * (1 - 0.6 * tongue) * lower * (0.8 * light - image)
    upper = _edge(inner_top + 5.5 * teeth - y, 1) * np.minimum(1.6 * teeth, 1)
    image += upper * (light - image)
    return image


def _portrait(face: Face) -> np.ndarray:
    """The still face about a closed mouth, with hair, on a fine square canvas."""
    points = np.arange(-_CANVAS, _CANVAS, 1 / _FINE, dtype=np.float32) + 0.5 / _FINE
    x, y = points[None, :], points[:, None]
    side, top = np.abs(x), face.nose_y - face.mouth_y
    grains = np.random.default_rng(face.texture)

    tone = 1 + 0.12 * face.light * x / 34 - 0.16 * (x / 34) ** 2 - 0.08 * face.light_above * y / 34
    tone = tone + 0.02 * _grain(grains, 1.5) + 0.02 * _grain(grains, 6)
    under_lip = y - face.lower_lip - 3
    tone -= 0.22 * face.light_above * _bump(x, 11) * _bump(under_lip, 2.6)
    tone += 0.07 * _bump(x, 10) * _bump(y - 21, 5.5)  # the chin
    tone *= 1 - 0.45 * _edge(y - 31 + (x / 13) ** 2, 7)  # the neck's shadow
    tone -= 0.05 * _bump(x, 1.8) * _edge(-y - 3, 6)  # the groove above the lip
    bulb = _bump(x, face.nose * 0.55) * _bump(y - top + 4, 6)
    tone += (0.14 + 0.05 * face.light * np.sign(x)) * bulb
    tone -= 0.16 * _bump(side - face.nose, 1.5) * _bump(y - top + 2, 4)
    tone -= 0.14 * _bump((x / face.nose) ** 2, 1) * _bump(y - top - 2.4, 1.8)
    tone -= 0.5 * _bump(side - face.nose * 0.5, 2.3) * _bump(y - top, 1.5)  # nostrils
    run = np.clip((y - top) / 22, 0, 1.4) * (face.half_width + 3 - face.nose)
    fold = _bump(side - face.nose - 2 - run, 1.6)
    tone -= face.folds * fold * _edge(y - top, 6) * _edge(6 - y, 8)

    reach = face.half_width + 3
    moustache = _edge(y - top - 4 - 0.017 * x * x, 5) * _edge(reach - side, 9)
    moustache = face.moustache * moustache * _edge(0.014 * x * x - y, 4)
    beard = face.beard * _edge(y - 7 + 0.022 * x * x, 9)
    cover = np.maximum(moustache, beard) * (0.88 + 0.07 * _grain(grains, 0.8))
    return (face.skin * (tone + np.clip(cover, 0, 1) * (0.36 - tone))).astype(np.float32)


def _edge(distance: np.ndarray, softness: float = 1.2) -> np.ndarray:
    """1 inside, 0 outside, a ramp of `softness` pixels where the distance to the border is 0."""
    return np.clip(distance / softness + 0.5, 0, 1)


def _bump(distance: np.ndarray, scale: float) -> np.ndarray:
    """exp(-(distance / scale)^2)."""
    return np.exp(-np.square(distance / scale))


def _grain(rng: np.random.Generator, scale: float) -> np.ndarray:
    """A canvas of smooth noise of unit variance; `scale` in pixels of the frame."""
    size = 2 * _CANVAS * _FINE
    field = gaussian_filter(
        rng.standard_normal((size, size), np.float32), scale * _FINE, truncate=2.5
    )
    return field / field.std()
