"""Synthetic talkers: a voice by espeak-ng, a drawn mouth that goes with it.

Open `synth` first; it makes a corpus of `sentences` spoken by `espeak` with a `mouth`.
"""
