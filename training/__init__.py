"""What keeps a long run alive: presets, the loop, checkpoints, the plan, sources of tokens."""
