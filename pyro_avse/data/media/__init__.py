"""Sound and pictures of any file: in as 16 kHz mono, out at the recording's own rate and level.

Open `audio` first; `sound` and `video` decode, `saving` and `copying` write, `channels` and `level` listen.
"""

TOLERANCE = 0.25
"""Seconds by which sound and video may differ in length."""
