"""AIMD in: trajectories, readers, checks and the windows cut from them."""
