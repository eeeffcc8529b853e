"""From clean speech to a speech prior's weights, by SVI.

Open `svi` first; `recipe` is what a run is told, `stages` runs it in a folder and resumes, `frames` are its data.
"""
