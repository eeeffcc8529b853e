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
