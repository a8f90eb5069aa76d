"""PyTorch side: networks, data, joint and meta training."""

if __name__ != "edgeadapt.training":
    raise ImportError(
        "this folder is installed as `edgeadapt.training`; run `pip install -e .` and import that"
    )
