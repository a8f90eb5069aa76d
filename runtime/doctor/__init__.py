"""`edgeadapt doctor`: what a machine has, what of it fits, and how to repair what does not."""
