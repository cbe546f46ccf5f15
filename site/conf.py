"""Sphinx's settings for the site; `build.py` gathers the pages that they apply to."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import llama3_scratch  # noqa: E402

project = "Llama 3 from scratch"
author = "The llama3-scratch authors"
copyright = author
version = release = llama3_scratch.__version__
language = "en"

extensions = ["myst_nb", "katex", "linking"]
exclude_patterns = ["jupyter_execute"]
html_math_renderer = "katex"
math_numfig = False
smartquotes = False
nitpicky = True

myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline", "fieldlist"]
myst_heading_anchors = 3
myst_dmath_allow_labels = False
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}
nb_code_prompt_show = "Show the solution"
nb_code_prompt_hide = "Solution"

html_theme = "sphinx_book_theme"
html_title = project
html_favicon = str(HERE / "_static" / "favicon.svg")
html_static_path = [str(HERE / "_static")]
html_css_files = ["katex/katex.css", "icons.css", "book.css"]
html_js_files = [("book.js", {"defer": "defer"})]
html_context = {"default_mode": "auto"}
html_last_updated_fmt = None
html_show_sphinx = False
html_copy_source = True
html_sourcelink_suffix = ""
html_domain_indices = False
html_use_index = False
add_module_names = False
html_sidebars = {"**": ["navbar-logo", "search-button-field", "sbt-sidebar-nav"]}
html_theme_options = {
    "navbar_persistent": [],
    "home_page_in_toc": False,
    "show_navbar_depth": 1,
    "show_toc_level": 1,
    "use_fullscreen_button": False,
    "use_download_button": True,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "github-dark",
    "footer_content_items": [],
    "toc_title": "On this page",
    "back_to_top_button": False,
}
