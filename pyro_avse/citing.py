"""BibTeX of what was used: `pyro_avse.cite("min_vae_v2", "vem")`."""

from pyro_avse.defaults import DEFAULT_INFERENCE, DEFAULT_MODEL
from pyro_avse.errors import InputError, closest

ENTRIES = {
    "pyro_avse": """@software{pyro_avse,
  title = {pyro\\_avse: unsupervised audio-visual speech enhancement as probabilistic programs},
  author = {{The pyro\\_avse authors}},
  version = {VERSION},
}""",
    "sadeghi2021min": """@article{sadeghi2021min,
  title = {Mixture of Inference Networks for {VAE}-Based Audio-Visual Speech Enhancement},
  author = {Sadeghi, Mostafa and Alameda-Pineda, Xavier},
  journal = {IEEE Transactions on Signal Processing},
  volume = {69},
  year = {2021},
  eprint = {1912.10647},
  archiveprefix = {arXiv},
}""",
    "sadeghi2020cvae": """@article{sadeghi2020cvae,
  title = {Audio-Visual Speech Enhancement Using Conditional Variational Auto-Encoders},
  author = {Sadeghi, Mostafa and Leglaive, Simon and Alameda-Pineda, Xavier and Girin, Laurent and Horaud, Radu},
  journal = {IEEE/ACM Transactions on Audio, Speech and Language Processing},
  volume = {28},
  pages = {1788--1800},
  year = {2020},
}""",
    "sadeghi2020mixture": """@inproceedings{sadeghi2020mixture,
  title = {Robust Unsupervised Audio-Visual Speech Enhancement Using a Mixture of Variational Autoencoders},
  author = {Sadeghi, Mostafa and Alameda-Pineda, Xavier},
  booktitle = {ICASSP},
  year = {2020},
}""",
    "sadeghi2021switching": """@inproceedings{sadeghi2021switching,
  title = {Switching Variational Autoencoders for Noise-Agnostic Audio-Visual Speech Enhancement},
  author = {Sadeghi, Mostafa and Alameda-Pineda, Xavier},
  booktitle = {ICASSP},
  year = {2021},
}""",
    "bando2018": """@inproceedings{bando2018,
  title = {Statistical Speech Enhancement Based on Probabilistic Integration of Variational Autoencoder and
    Non-Negative Matrix Factorization},
  author = {Bando, Yoshiaki and Mimura, Masato and Itoyama, Katsutoshi and Yoshii, Kazuyoshi and Kawahara, Tatsuya},
  booktitle = {ICASSP},
  pages = {716--720},
  year = {2018},
}""",
    "leglaive2018": """@inproceedings{leglaive2018,
  title = {A Variance Modeling Framework Based on Variational Autoencoders for Speech Enhancement},
  author = {Leglaive, Simon and Girin, Laurent and Horaud, Radu},
  booktitle = {MLSP},
  year = {2018},
}""",
    "girin2021": """@article{girin2021,
  title = {Dynamical Variational Autoencoders: A Comprehensive Review},
  author = {Girin, Laurent and Leglaive, Simon and Bie, Xiaoyu and Diard, Julien and Hueber, Thomas and
    Alameda-Pineda, Xavier},
  journal = {Foundations and Trends in Machine Learning},
  volume = {15},
  year = {2021},
}""",
    "leglaive2020": """@inproceedings{leglaive2020,
  title = {A Recurrent Variational Autoencoder for Speech Enhancement},
  author = {Leglaive, Simon and Alameda-Pineda, Xavier and Girin, Laurent and Horaud, Radu},
  booktitle = {ICASSP},
  year = {2020},
}""",
    "krishnan2015": """@misc{krishnan2015,
  title = {Deep {Kalman} Filters},
  author = {Krishnan, Rahul G. and Shalit, Uri and Sontag, David},
  year = {2015},
  eprint = {1511.05121},
  archiveprefix = {arXiv},
}""",
    "fraccaro2016": """@inproceedings{fraccaro2016,
  title = {Sequential Neural Models with Stochastic Layers},
  author = {Fraccaro, Marco and S{\\o}nderby, S{\\o}ren Kaae and Paquet, Ulrich and Winther, Ole},
  booktitle = {NIPS},
  year = {2016},
}""",
    "bie2022": """@misc{bie2022,
  title = {{HiT-DVAE}: Human Motion Generation via Hierarchical Transformer Dynamical {VAE}},
  author = {Bie, Xiaoyu and Guo, Wen and Leglaive, Simon and Girin, Laurent and Moreno-Noguer, Francesc and
    Alameda-Pineda, Xavier},
  year = {2022},
  eprint = {2204.01565},
  archiveprefix = {arXiv},
}""",
    "chung2015": """@inproceedings{chung2015,
  title = {A Recurrent Latent Variable Model for Sequential Data},
  author = {Chung, Junyoung and Kastner, Kyle and Dinh, Laurent and Goel, Kratarth and Courville, Aaron and
    Bengio, Yoshua},
  booktitle = {NIPS},
  year = {2015},
}""",
    "bayer2014": """@misc{bayer2014,
  title = {Learning Stochastic Recurrent Networks},
  author = {Bayer, Justin and Osendorfer, Christian},
  year = {2014},
  eprint = {1411.7610},
  archiveprefix = {arXiv},
}""",
    "li2018": """@inproceedings{li2018,
  title = {Disentangled Sequential Autoencoder},
  author = {Li, Yingzhen and Mandt, Stephan},
  booktitle = {ICML},
  year = {2018},
}""",
    "hoffman2014": """@article{hoffman2014,
  title = {The No-{U}-Turn Sampler: Adaptively Setting Path Lengths in {Hamiltonian Monte Carlo}},
  author = {Hoffman, Matthew D. and Gelman, Andrew},
  journal = {Journal of Machine Learning Research},
  volume = {15},
  year = {2014},
}""",
    "bingham2019": """@article{bingham2019,
  title = {Pyro: Deep Universal Probabilistic Programming},
  author = {Bingham, Eli and Chen, Jonathan P. and Jankowiak, Martin and Obermeyer, Fritz and Pradhan, Neeraj and
    Karaletsos, Theofanis and Singh, Rohit and Szerlip, Paul and Horsfall, Paul and Goodman, Noah D.},
  journal = {Journal of Machine Learning Research},
  volume = {20},
  year = {2019},
}""",
}
DYNAMICAL = {
    "rvae": "leglaive2020",
    "dkf": "krishnan2015",
    "srnn": "fraccaro2016",
    "hit_dvae": "bie2022",
    "vrnn": "chung2015",
    "storn": "bayer2014",
    "dsae": "li2018",
}
OF: dict[str, tuple[str, ...]] = {
    **{
        f"{kind}{name}": ("girin2021", key)
        for kind in ("", "av_")
        for name, key in DYNAMICAL.items()
    },
    "a_vae": ("bando2018", "leglaive2018"),
    "v_vae": ("sadeghi2020cvae",),
    "av_vae": ("sadeghi2020cvae",),
    "min_vae_v1": ("sadeghi2021min",),
    "min_vae_v2": ("sadeghi2021min",),
    "min_vae_v3": ("sadeghi2021min",),
    "vae_mm": ("sadeghi2020mixture",),
    "switching": ("sadeghi2021switching",),
    "vem": ("sadeghi2021min",),
    "collapsed_vem": ("sadeghi2021min",),
    "amortised_vem": ("sadeghi2021min",),
    "mcem": ("leglaive2018", "sadeghi2020cvae"),
    "peem": ("leglaive2018",),
    "gpeem": ("leglaive2018",),
    "ldem": ("leglaive2018",),
    "guided": ("leglaive2018",),
    "bnmf": ("bando2018",),
    "importance": ("leglaive2018",),
    "nuts": ("hoffman2014",),
    "auto_normal": (),
}
"""What the models and schemes of the command line come from; all are written in Pyro."""


def cite(*names: str) -> str:
    """BibTeX of this library, of Pyro, and of where models and schemes come from, by their names; else of the defaults.

    Raises InputError for an unknown name.
    """
    from pyro_avse import __version__

    keys = ["pyro_avse", "bingham2019"]
    for name in names or (DEFAULT_MODEL, DEFAULT_INFERENCE):
        if name not in OF:
            raise InputError(f"unknown model or scheme {name!r}{closest(name, OF)}")
        keys += OF[name]
    entries = (ENTRIES[key] for key in dict.fromkeys(keys))
    return "\n\n".join(entries).replace("VERSION", __version__) + "\n"
