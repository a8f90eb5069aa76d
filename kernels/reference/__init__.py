"""The text each kernel is held to: numpy, float64, no cleverness."""
