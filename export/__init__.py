"""From a PyTorch module to a bundle: the forward graph and the exported backward pass."""

if __name__ != "edgeadapt.export":
    raise ImportError(
        "this folder is installed as `edgeadapt.export`; run `pip install -e .` and import that"
    )
