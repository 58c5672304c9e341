"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import nfsrwlock

project = "nfsrwlock"
author = "nfsrwlock developers"
copyright = "2026, nfsrwlock developers"
release = version = nfsrwlock.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click", "sphinx_copybutton", "sphinx_design"]
# intro.md and further.md are read by the catalogue of Snakemake's plugins.
exclude_patterns = ["_build", "benchmarks/results.md", "intro.md", "further.md"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"nfsrwlock {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True}
# People import these names from `nfsrwlock`; that they live in modules of the core is of no interest here.
add_module_names = False

copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
copybutton_line_continuation_character = "\\"

# The build reads nothing from the network, so names of the standard library and of filelock have no target here.
_ELSEWHERE = (
    *("asyncio", "collections", "concurrent", "contextlib", "datetime", "distributed", "enum", "filelock", "os"),
    *("pathlib", "threading", "typing", "types"),
)
nitpick_ignore_regex = [
    (r"py:.*", rf"({'|'.join(_ELSEWHERE)})\..*"),
]

# Names of parameter types whose values the parameters' descriptions list.
nitpick_ignore = [
    ("py:class", name)
    for name in (
        *(
            "AnyPath",
            "Executor",
            "Granularity",
            "Heartbeat",
            "LeaseOptions",
            "Limits",
            "Mode",
            "OnContention",
            "OnWait",
            "Options",
        ),
        *("Paths", "PathsOrFunction", "Share", "Time", "Until", "Use"),
    )
]
# An exception of Snakemake's.
nitpick_ignore.append(("py:exc", "WorkflowError"))


def find_under_public_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: Element) -> Element | None:
    """Lead a reference to a name of the core, wherever it is defined, to where it is documented: under `nfsrwlock`."""
    names = node.get("reftarget", "").removeprefix("nfsrwlock_core.").split(".")
    if node.get("refdomain") != "py":
        return None
    for start in range(len(names)):
        public = ".".join(["nfsrwlock", *names[start:]])
        found = env.domains.python_domain.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, contnode)
        if found is not None:
            return found
    return None


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("missing-reference", find_under_public_name)
