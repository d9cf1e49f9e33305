"""A page to play with: Algorithm 1 recorded on a few clips, in one HTML file."""
