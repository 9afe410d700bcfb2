"""Figures to touch: what a chapter shows and a reader can move, in plain HTML and JavaScript."""
