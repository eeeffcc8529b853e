"""Posteriors of this field, from easy to hard, with reference draws: a yardstick for samplers, as posteriordb is.

Open `library.py` first; `stories.py` has the densities, `race.py` puts samplers side by side.
"""

from pyro_avse.lab.posteriors.library import POSTERIORS, Posterior, Reference, load
from pyro_avse.lab.posteriors.race import Verdict, judge, race

__all__ = ["POSTERIORS", "Posterior", "Reference", "Verdict", "judge", "load", "race"]
