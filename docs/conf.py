"""Settings of the documentation: `make docs`."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "eat-audio"
author = "eat-audio contributors"
copyright = author
release = version = version_of("eat-audio")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "site_pages",
]
exclude_patterns = ["_build"]
smartquotes = False  # options begin with two dashes
default_role = "code"

html_theme = "furo"
html_title = f"eat-audio {release}"
html_copy_source = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
