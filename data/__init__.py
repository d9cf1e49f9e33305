"""Clips in: videos, folders, layouts of known data sets, and a world that is drawn."""
