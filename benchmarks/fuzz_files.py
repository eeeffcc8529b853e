"""Real files of every kind, small, and their mutations: what benchmarks/fuzz.py feeds."""

import io
import json
import re
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import soundfile
import torch

from pyro_avse.models import AVAE, MINVAEv2
from pyro_avse.stft import STFT
from pyro_avse.sweep.results import write_row
from pyro_avse.weights.checkpoint import save_prior

INSIDE = ("flac", "ogg", "mp3", "npz", "json", "toml")
"""Kinds that are mutated under their checksums or syntax too."""
INTEGERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def make_seeds(folder: Path) -> dict[str, Path]:
    """A real file of each kind, by kind."""
    rng, time_ = np.random.default_rng(0), np.arange(19200) / 16000
    sound = np.sin(2 * np.pi * 200 * time_) * np.sin(2 * np.pi * 3 * time_) ** 2
    sound = (0.3 * sound + 0.03 * rng.standard_normal(len(time_))).astype(np.float32)
    found = {kind: folder / f"seed.{kind}" for kind in ("wav", "flac", "ogg", "mp3")}
    for path in found.values():
        soundfile.write(path, sound, 16000)
    for kind, pictures, voice in (
        ("mp4", "mpeg4", "aac"),
        ("mkv", "mpeg4", "flac"),
        ("webm", "libvpx", "libopus"),
    ):
        found[kind] = folder / f"seed.{kind}"
        _video(found[kind], sound, pictures, voice)
    lips = rng.integers(0, 255, (30, 67, 67), dtype=np.uint8)
    found |= {kind: folder / f"seed.{kind}" for kind in ("npz", "mat", "safetensors", "json")}
    np.savez(found["npz"], lips=lips, fps=np.float64(25))
    with h5py.File(found["mat"], "w") as file:
        file["data"] = np.tile(np.eye(1, 4489, dtype=np.float32) * 67 * 100, (36, 1))
    torch.manual_seed(0)
    save_prior(found["safetensors"], AVAE(latent_dim=4, hidden=8), STFT())
    save_prior(folder / "lips.safetensors", MINVAEv2(latent_dim=4, hidden=8, features=8), STFT())
    found["json"].write_text(
        json.dumps({"iterations": 1, "chains": 1, "noise": {"rank": 3}, "exponent": 0.75})
    )
    found["toml"] = folder / "seed.toml"
    recipe = 'model = "min_vae_v2"\nseed = 3\n[options]\nhidden = 8\nlatent_dim = 4\n[training]\nepochs = 2\n'
    found["toml"].write_text(recipe + 'schedule = "cosine"\n[data]\nhop = 533\n')
    (folder / "parts").mkdir()
    write_row(folder, {"key": "k", "clip": "a", "noise": "white", "snr": 0.0, "model": "a_vae"})
    found["parquet"] = folder / "parts" / "k.parquet"
    return found


def _video(path: Path, sound: np.ndarray, pictures: str, voice: str) -> None:
    rate = 48000 if voice == "libopus" else 16000
    with av.open(str(path), "w") as container:
        seen: Any = container.add_stream(pictures, rate=25)
        seen.width = seen.height = 64
        seen.pix_fmt = "yuv420p"
        heard: Any = container.add_stream(voice, rate=rate, layout="mono")
        packets = []
        for k in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64), 8 * k, np.uint8), format="gray")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            packets += seen.encode(frame)
        samples = np.ascontiguousarray(np.repeat(sound, rate // 16000)[None])
        form = "s16" if voice == "flac" else "fltp"
        samples = (samples * 32767).astype(np.int16) if form == "s16" else samples
        if voice == "libopus":
            form, samples = "flt", samples.astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format=form, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for packet in [*packets, *seen.encode(None), *heard.encode(frame), *heard.encode(None)]:
            container.mux(packet)


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes, most of them small, most of them beyond the file's head."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        size = len(changed)
        if size < 8:
            break
        head = rng.random() < 0.3
        at = int(rng.integers(0, min(size, 200) if head else size))
        length = int(min(size - at, 2 ** rng.uniform(0, 8)))
        change = rng.integers(0, 8)
        if change <= 2:
            changed[at] ^= 1 << rng.integers(0, 8)
        elif change == 3:
            width = int(rng.choice([1, 2, 4, 8]))
            number = int(rng.choice(INTEGERS)) % 256**width
            order = "little" if rng.random() < 0.5 else "big"
            changed[at : at + width] = number.to_bytes(width, order)  # type: ignore[arg-type]
        elif change == 4:
            changed[at : at + length] = rng.bytes(length)
        elif change == 5:
            del changed[at : at + length]
        elif change == 6:
            changed[at:at] = changed[at : at + length]
        elif rng.random() < 0.5:
            del changed[at:]
        else:
            changed[at : at + length] = bytes(length)
    return bytes(changed)


def mutate_inside(kind: str, path: Path, rng: np.random.Generator) -> bytes:
    """The same under the format's checksums or its syntax: samples, arrays in an archive, words and numbers."""
    packed = io.BytesIO()
    if kind in ("flac", "ogg", "mp3"):
        samples, rate = soundfile.read(path, dtype="int16")
        changed = np.frombuffer(mutate(samples.tobytes(), rng)[: 2 * len(samples) // 2 * 2], "u1")
        soundfile.write(packed, changed[: len(changed) // 2 * 2].view("<i2"), rate, format=kind)
    elif kind == "npz":
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w") as new:
            chosen = rng.choice(old.namelist(), p=[0.7, 0.3])
            for name in old.namelist():
                content = old.read(name)
                new.writestr(name, mutate(content, rng) if name == chosen else content)
    else:
        words = re.split(r"(\w+)", path.read_text())
        at = 1 + 2 * int(rng.integers(len(words) // 2))
        others = ["0", "-1", "1e999", "9" * 25, "true", "nan", '""', "[]", *words[1::2]]
        words[at] = others[rng.integers(len(others))]
        packed.write("".join(words).encode())
    return packed.getvalue()
