"""Answers that are spans of a context: windows, decoding, when to refuse, kinds of errors."""
