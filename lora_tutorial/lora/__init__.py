"""Low-rank adaptation itself: settings, layers, injection, merging, counting, variants. Knows only torch."""
