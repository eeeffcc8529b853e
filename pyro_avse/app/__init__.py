"""A page to play with, in a browser: `pyro-avse app`.

Open `work` first, which has no browser in it; `page` is what one sees, `serving` who may come.
"""
