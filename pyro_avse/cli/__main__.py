"""`python -m pyro_avse.cli`: the command line, as `torchrun` starts it."""

from pyro_avse.cli import main

main()
