"""Where the time of a step or a restoration goes, and what the machine can do at most."""
