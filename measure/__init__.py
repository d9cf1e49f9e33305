"""What judges: mathematics, protocols, frozen networks, features on disk, a run's report."""
