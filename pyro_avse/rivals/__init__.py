"""Other people's speech enhancement, to stand beside ours in a table.

Open `find` first; `classical` and `gabbay` are written here, `peers` wraps packages, `external` anything else.
"""
