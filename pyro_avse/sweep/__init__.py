"""Many mixtures, models and schemes, scored into one table that can be gone on with.

Open `evaluation` first; `protocol` says what a sweep holds, `report` prints it.
"""
