"""Files on disk to parameters in memory: nothing is copied, nothing is guessed."""
