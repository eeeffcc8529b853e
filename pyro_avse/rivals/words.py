"""Words of GRID's sentences heard by a recogniser of before neural networks, whose models are inside its wheel.

    command colour preposition letter digit adverb          bin blue at f two now

PocketSphinx [Huggins-Daines et al. 2006] chooses among these sentences alone (51,200 of them), by hidden Markov models
of American English that never heard GRID or our noises. Its accuracy is the share of the six words that are right.
"""

import importlib
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from pyro_avse.typing import InputError

SLOTS = (
    ("bin", "lay", "place", "set"),
    ("blue", "green", "red", "white"),
    ("at", "by", "in", "with"),
    tuple("abcdefghijklmnopqrstuvxyz"),  # w is three syllables, and was left out
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ("again", "now", "please", "soon"),
)
"""The words of each place; GRID's file names have the first letter of each, and a digit (z is zero)."""


def words_of(name: str) -> list[str]:
    """The sentence that a GRID name says: bbaf2n. Raises InputError for another name."""
    spoken = {"z": "zero"} | {str(n): word for n, word in enumerate(SLOTS[4])}
    found = []
    for place, letter in enumerate(name):
        words = [w for w in SLOTS[min(place, 5)] if w.startswith(letter)]
        found += [spoken.get(letter, "")] if place == 4 else words
    if len(name) != 6 or len(found) != 6 or "" in found:
        raise InputError(f"{name!r} names no sentence of GRID: give six letters as bbaf2n")
    return found


def word_accuracy(speech: Float[np.ndarray, "sample"], sentence: list[str]) -> float:
    """The share of a sentence's words that are heard in their places, at 16 kHz.

    Raises InputError without PocketSphinx.
    """
    decoder = _decoder()
    loudest = float(np.abs(speech).max()) or 1.0
    decoder.start_utt()
    decoder.process_raw((speech / loudest * 32000).astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    heard = decoder.hyp()
    words = [] if heard is None else heard.hypstr.split()
    return sum(a == b for a, b in zip(words, sentence, strict=False)) / len(sentence)


@lru_cache(maxsize=1)
def _decoder() -> Any:
    try:
        package = importlib.import_module("pocketsphinx")
    except ImportError:
        raise InputError("no words: pip install 'pyro_avse[peers]' has PocketSphinx") from None
    decoder = package.Decoder(
        hmm=package.get_model_path("en-us/en-us"),
        dict=package.get_model_path("en-us/cmudict-en-us.dict"),
        lm=None,
        loglevel="FATAL",
    )
    slots = " ".join(f"( {' | '.join(words)} )" for words in SLOTS)
    decoder.add_jsgf_string("grid", f"#JSGF V1.0;\ngrammar grid;\npublic <sentence> = {slots};")
    decoder.activate_search("grid")
    return decoder
