"""The documentation site: Sphinx, with notebooks by MyST-NB and MathJax from a wheel, so that nothing is fetched.

Sphinx rather than MkDocs: it checks every reference, to equations and to names of the API alike, and treats what it
does not find as an error. `make docs` builds it into docs/_build/html.
"""

import sys
from pathlib import Path

import pyro_avse

sys.path[:0] = [str(Path(__file__).parent)]  # for `reference`
project = "pyro_avse"
author = "the authors of pyro_avse"
version = release = pyro_avse.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
    "reference",
]
exclude_patterns = ["_build", "README.md"]
viewcode_follow_imported_members = False  # each has its source where it stands
nitpicky = True
nitpick_ignore_regex = [("py:(?!obj)\\w+", ".*")]  # types of other libraries

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "substitution"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).parent / "_build" / "notebooks")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_excludepatterns = ["lessons/*"]
nb_merge_streams = True
nb_output_stderr = "remove"  # what libraries say of this machine
nb_execution_show_tb = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False  # a `forward` of ours is not what torch says of any
autodoc_typehints_format = "short"
autodoc_class_signature = "separated"
autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    "show-inheritance": True,
    "exclude-members": "training, dump_patches, call_super_init",
}

html_theme = "furo"
html_title = "pyro_avse"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
