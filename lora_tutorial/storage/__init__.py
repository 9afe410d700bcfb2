"""Files that are whole or absent, pinned downloads, and the model hub."""
