"""The book's one figure style. Plots take arrays or stored records, never a model."""

from __future__ import annotations

import sys
from typing import Any

import matplotlib as mpl
from cycler import cycler

__all__ = ["AXIS", "CYCLE", "GRID", "OKABE_ITO", "ROLES", "use_style"]

# Okabe and Ito (2008), "Color Universal Design": told apart with every common form of colour blindness.
# Black and yellow are left out: one vanishes on a dark page, the other on a white one.
OKABE_ITO = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "purple": "#CC79A7",
}
CYCLE = list(OKABE_ITO.values())

# Grey text with a contrast of at least 4 to 1 on white (#ffffff) and on the dark page (#14171c) alike.
AXIS = "#7a7d82"
GRID = "#8a8d9233"

# What a colour means is the same in every chapter.
ROLES = {
    "frozen": "#8a8d92",
    "lora": OKABE_ITO["vermillion"],
    "full": OKABE_ITO["blue"],
    "head": OKABE_ITO["green"],
    "bitfit": OKABE_ITO["orange"],
    "published": OKABE_ITO["purple"],
    "baseline": OKABE_ITO["sky"],
}


def use_style() -> None:
    """Give every following figure the book's look.

    The background is transparent and text is grey, so that one picture reads on a white and on a dark page.
    Nothing depends on the time or on the machine's fonts: matplotlib's own DejaVu Sans is used, and its
    letters are drawn as outlines. A notebook stores its figures as SVG from then on; elsewhere only the
    look changes.
    """
    _show_svg()
    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 144,
            "figure.facecolor": "none",
            "figure.constrained_layout.use": True,
            "savefig.dpi": 144,
            "savefig.facecolor": "none",
            "savefig.transparent": True,
            "svg.hashsalt": "lora-tutorial",
            "svg.fonttype": "path",
            "axes.facecolor": "none",
            "axes.edgecolor": AXIS,
            "axes.labelcolor": AXIS,
            "axes.titlecolor": AXIS,
            "axes.titlesize": 12.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 10,
            "axes.labelsize": 11,
            "axes.linewidth": 0.8,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=CYCLE),
            "grid.color": GRID,
            "grid.linewidth": 0.8,
            "xtick.color": AXIS,
            "ytick.color": AXIS,
            "xtick.labelsize": 10.5,
            "ytick.labelsize": 10.5,
            "xtick.major.size": 3,
            "ytick.major.size": 0,
            "text.color": AXIS,
            "font.family": "DejaVu Sans",
            "font.size": 11,
            "legend.frameon": False,
            "legend.fontsize": 10.5,
            "lines.linewidth": 2,
            "lines.markersize": 5,
            "lines.solid_capstyle": "round",
            "patch.edgecolor": "none",
            "image.cmap": "cividis",
            "image.interpolation": "none",  # the array's own values, which a drawing can enlarge
        }
    )


def _show_svg() -> None:
    """Have a notebook store its figures as SVG, without the time and the versions that drew them."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None:
        return
    from matplotlib_inline.config import InlineBackend

    backend: Any = InlineBackend.instance(parent=shell)
    unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    backend.print_figure_kwargs = {**backend.print_figure_kwargs, "metadata": unsaid}
    backend.figure_formats = {"svg"}
