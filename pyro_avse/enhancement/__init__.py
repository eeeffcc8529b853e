"""A noisy recording in, speech and noise out.

Open `enhancer` first; `front` is what comes before inference, `long` cuts blocks, `find` builds schemes by name.
"""
