"""How a training run went, as a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pyro_avse.plots import BLUE, GREY, save_figure
from pyro_avse.typing import JSON


def training_figure(history: Sequence[JSON], path: Path) -> None:
    """The ELBO, its two parts on held-out frames, and the mean responsibilities, epoch by epoch."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes: Any = figure.subplots(2, 2)
    epochs = [row["epoch"] for row in history]
    curves = {
        "ELBO": ((0, 0), {"train": "train_objective", "valid": "valid_elbo"}),
        "reconstruction": ((0, 1), {"valid": "valid_reconstruction"}),
        "KL": ((1, 0), {"valid": "valid_kl"}),
    }
    for title, (place, keys) in curves.items():
        for label, key in keys.items():
            colour = BLUE if label == "valid" else GREY
            axes[place].plot(epochs, [row[key] for row in history], colour, label=label)
        axes[place].set(xlabel="epoch", ylabel="nats / frame")
        axes[place].set_title(title, fontsize=9)
        axes[place].legend(fontsize=8)
    axes[1, 1].plot(
        epochs, [row["valid_responsibility"][0] for row in history], BLUE, label="valid"
    )
    axes[1, 1].plot(epochs, [row["mixing_weight"][0] for row in history], GREY, label="pi")
    axes[1, 1].set(xlabel="epoch", ylim=(-0.05, 1.05))
    axes[1, 1].set_title("mean responsibility of component 0, and pi", fontsize=9)
    axes[1, 1].legend(fontsize=8)
    save_figure(figure, path)


def guide_figure(history: Sequence[JSON], path: Path) -> None:
    """The objective of a guide, and the codes' part of it, round by round."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    rounds = [row["epoch"] for row in history]
    left.plot(rounds, [row["train_objective"] for row in history], GREY, label="train")
    left.plot(rounds, [row["valid_objective"] for row in history], BLUE, label="valid")
    left.legend(fontsize=8)
    right.plot(rounds, [row["valid_codes"] for row in history], BLUE)
    for axes, title in (
        (left, "log q of all that was drawn"),
        (right, "log q of the codes, valid"),
    ):
        axes.set(xlabel="round", ylabel="nats / frame")
        axes.set_title(title, fontsize=9)
    save_figure(figure, path)
