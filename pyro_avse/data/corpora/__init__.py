"""Folders of clips as corpora: what is in them, by any of four layouts.

Open `utterance` first, the contract; `corpus` finds the reader, `info` describes a folder.
"""
