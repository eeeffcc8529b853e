"""How well faces are found where they are turned, scaled, dimmed and half hidden, by landmarks and by OpenCV's cascade
alone; and how often the one of two faces is taken whose sound it is.

    python benchmarks/faces.py --videos ../shared/data/grid/video --lips ../shared/data/grid/valid \
        --noise ../shared/data/noise --out docs/figures/faces.png

A face is found where the middle of its mouth lies within 15 % of the face's width of where the picture's change has put
it. For pairs, each clip's sound is held against its own lips and those of every other clip. The figure shows a drawn
face: no picture of a person is part of this repository.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from pyro_avse.data.lips.face import Boxes, cut_mouth, mouth_of
from pyro_avse.data.lips.finder import FaceFinder
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.lips.speaker import EARLY, LATE, correlation, opening_rate, rise
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.media.video import read_pictures
from pyro_avse.data.noise import mix_at_snr, take_noise
from pyro_avse.plots import save_figure

BORDER, GREY = 200, 100
SHIFT = np.array([BORDER, BORDER, 0, 0, 0])
NEAR = 0.15
Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""A picture and its face; the changed picture, and the matrix (3, 3) by which its places moved."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--lips", type=Path, help="a corpus of .flac with .npz, for pairs")
    parser.add_argument("--noise", type=Path, help="a folder of recorded noise, for pairs")
    parser.add_argument("--out", type=Path, required=True, help="the figure")
    args = parser.parse_args()

    new, old = FaceFinder(), FaceFinder()
    old.landmarks = None
    clips = [
        [grey() for _, grey in read_pictures(path)] for path in sorted(args.videos.glob("*.mpg"))
    ]
    truths = [
        np.median([old(picture)[0] for picture in pictures[::5]], axis=0) for pictures in clips
    ]
    drawn = draw_face()
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    axes = figure.subplots(3, len(CHANGES))
    print("| picture | by landmarks | by the cascade |\n| --- | --- | --- |")
    for column, (name, change) in zip(axes.T, CHANGES.items(), strict=True):
        hits = np.zeros(2)
        count = 0
        for pictures, truth in zip(clips, truths, strict=True):
            for picture in pictures[2::15]:
                wide = cv2.copyMakeBorder(
                    picture, *[BORDER] * 4, cv2.BORDER_CONSTANT, value=(GREY,)
                )
                face = truth + SHIFT
                seen, moved = change(wide, face)
                count += 1
                for k, finder in enumerate((new, old)):
                    finder.turn, finder.waited = 0, 99
                    hits[k] += near(finder(seen), face, moved)
        print(f"| {name} | {hits[0]:.0f} of {count} | {hits[1]:.0f} of {count} |", flush=True)
        wide = cv2.copyMakeBorder(drawn, *[BORDER] * 4, cv2.BORDER_CONSTANT, value=(GREY,))
        draw(column, name, change(wide, old(drawn)[0] + SHIFT)[0], (new, old))
    save_figure(figure, args.out)
    if args.lips and args.noise:
        print_pairs(args.lips, args.noise)


def near(boxes: Boxes, face: np.ndarray, moved: np.ndarray) -> bool:
    """Whether one of the boxes has its mouth where the face's went."""
    x, y = mouth_of(face)
    ends = moved @ np.array([[x, x + face[2]], [y, y], [1, 1]])
    ends = ends[:2] / ends[2]
    width = float(np.hypot(*(ends[:, 1] - ends[:, 0])))
    return any(np.hypot(*(np.array(mouth_of(box)) - ends[:, 0])) < NEAR * width for box in boxes)


def draw(axes: np.ndarray, name: str, picture: np.ndarray, finders: tuple[FaceFinder, ...]) -> None:
    """The picture, and the lips that each finder cuts."""
    axes[0].imshow(picture, cmap="gray", vmin=0, vmax=255)
    axes[0].set_title(name, fontsize=8)
    for axis, finder, by in zip(axes[1:], finders, ("landmarks", "cascade"), strict=True):
        finder.turn, finder.waited = 0, 99
        boxes = finder(picture)
        if len(boxes):
            axis.imshow(cut_mouth(picture, boxes[0]), cmap="gray", vmin=0, vmax=255)
        else:
            axis.text(0.5, 0.5, "no face", ha="center", va="center", transform=axis.transAxes)
        axis.set_ylabel(by if axis.get_subplotspec().is_first_col() else "", fontsize=8)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])


def draw_face() -> np.ndarray:
    """A face of grey ellipses, 288 x 360 pixels; drawn larger, softened and lit from the left."""
    size = 4
    picture = np.full((288 * size, 360 * size), 165, np.uint8)

    def ellipse(
        x: float, y: float, a: float, b: float, level: int, arc: tuple[int, int] = (0, 360)
    ) -> None:
        centre, axes = (round(size * x), round(size * y)), (round(size * a), round(size * b))
        width = -1 if arc == (0, 360) else 4 * size
        cv2.ellipse(picture, centre, axes, 0, *arc, (level,), width, cv2.LINE_AA)

    ellipse(180, 300, 120, 75, 70)  # shoulders
    ellipse(180, 215, 28, 50, 150)  # neck
    ellipse(180, 120, 64, 80, 45)  # hair
    ellipse(180, 142, 53, 70, 200)
    for side in (-1, 1):
        ellipse(180 + 55 * side, 145, 7, 14, 185)  # ear
        ellipse(180 + 22 * side, 114, 15, 8, 70, (200, 340))  # brow
        ellipse(180 + 22 * side, 129, 13, 9, 165)
        ellipse(180 + 22 * side, 129, 10, 5, 235)  # eye
        ellipse(180 + 22 * side, 129, 5, 5, 40)
        ellipse(180 + 7 * side, 163, 4, 2.5, 90)  # nostril
    ellipse(180, 150, 5, 18, 215)  # nose, and its shade
    ellipse(174, 150, 2, 16, 170)
    ellipse(180, 188, 20, 5, 120)  # lips
    ellipse(180, 192, 17, 6, 140)
    ellipse(180, 189, 18, 1.2, 60)
    ellipse(180, 207, 16, 4, 180)  # chin
    soft = cv2.GaussianBlur(picture, (0, 0), 2.0 * size)
    lit = np.clip(soft * np.linspace(1.08, 0.85, soft.shape[1]), 0, 255).astype(np.uint8)
    return cv2.resize(lit, (360, 288), interpolation=cv2.INTER_AREA)


def turn(degrees: float) -> Change:
    def change(picture: np.ndarray, face: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centre = picture.shape[1] / 2, picture.shape[0] / 2
        by = cv2.getRotationMatrix2D(centre, -degrees, 1)
        turned = cv2.warpAffine(picture, by, picture.shape[::-1], borderValue=(GREY,))
        return turned, np.vstack([by, [0, 0, 1]])

    return change


def aside(degrees: float) -> Change:
    """The picture as a card that is turned about its upright axis."""

    def change(picture: np.ndarray, face: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = picture.shape
        far, angle = 1.2 * columns, np.radians(degrees)
        lens = np.array([[far, 0, columns / 2], [0, far, rows / 2], [0, 0, 1]])
        card = np.array([[np.cos(angle), 0, 0], [0, 1, 0], [-np.sin(angle), 0, far]])
        by = lens @ card @ np.array([[1, 0, -columns / 2], [0, 1, -rows / 2], [0, 0, 1]])
        seen = cv2.warpPerspective(picture, by, (columns, rows), borderValue=(GREY,))
        return seen, by / by[2, 2]

    return change


def scale(by: float) -> Change:
    def change(picture: np.ndarray, face: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        small = cv2.resize(picture, None, fx=by, fy=by, interpolation=cv2.INTER_AREA)
        return small, np.diag([by, by, 1.0])

    return change


def dim(by: float, noise: float) -> Change:
    def change(picture: np.ndarray, face: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        grain = np.random.default_rng(0).normal(0, noise, picture.shape)
        return np.clip(by * picture + grain, 0, 255).astype(np.uint8), np.eye(3)

    return change


def hide(left: float, top: float, right: float, bottom: float, level: int) -> Change:
    """A patch over that part of the face's box, in shares of it."""

    def change(picture: np.ndarray, face: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y, width = face[:3]
        hidden = picture.copy()
        rows = slice(int(y + top * width), int(y + bottom * width))
        hidden[rows, int(x + left * width) : int(x + right * width)] = level
        return hidden, np.eye(3)

    return change


CHANGES: dict[str, Change] = {
    "as it is": turn(0),
    "turned 20": turn(20),
    "turned 45": turn(-45),
    "turned 90": turn(90),
    "upside down": turn(180),
    "aside 40": aside(40),
    "a sixth": scale(0.15),
    "dim, noisy": dim(0.2, 6),
    "very dim": dim(0.1, 0),
    "left half hidden": hide(-0.1, 0, 0.5, 1.1, 90),
    "an eye hidden": hide(-0.1, 0, 0.5, 0.55, 90),
    "eyes hidden": hide(-0.1, 0.2, 1.1, 0.48, 30),
    "mouth hidden": hide(0.2, 0.68, 0.8, 0.95, 120),
}


def print_pairs(corpus: Path, noises: Path) -> None:
    """In how many pairs of clips the lips that go with a sound agree with it better than the other clip's."""
    paths = sorted(corpus.rglob("*.npz"))
    lips = [load_lips(path) for path in paths]
    voices = [load_audio(path.with_suffix(".flac")).waveform for path in paths]
    opening = [opening_rate(seen.frames) for seen in lips]
    recorded = [load_audio(path).waveform for path in sorted(noises.glob("*.flac"))]
    fps = lips[0].fps
    lags = range(-round(EARLY * fps), round(LATE * fps) + 1)
    print(f"\n{len(paths)} clips\n\n| noise | right of all pairs |\n| --- | --- |")
    for snr in (None, 5, 0, -5):
        rng = np.random.default_rng(0)
        right = []
        for number, voice in enumerate(voices):
            heard = voice
            if snr is not None:
                noise, _ = take_noise(recorded[number % len(recorded)], len(voice), rng)
                heard, _ = mix_at_snr(voice, noise, snr)
            scores = []
            for rates in opening:
                count = min(len(rates), int(len(heard) / 16000 * fps))
                rising = rise(heard, fps, count)
                scores.append(max(correlation(rates[:count], rising, lag) for lag in lags))
            right += [scores[number] > other for k, other in enumerate(scores) if k != number]
        print(f"| {'none' if snr is None else f'{snr} dB'} | {100 * np.mean(right):.0f} % |")


if __name__ == "__main__":
    main()
