"""Trained weights: bundled, saved, loaded, described, and imported from other codes.

Open `checkpoint` first; `cards` say what a bundled model learned from, `bundled/` holds them.
"""
