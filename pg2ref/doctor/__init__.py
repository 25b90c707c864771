"""`pg2ref doctor`: what this machine is, and which of the published models it can run."""
