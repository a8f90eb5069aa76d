"""The device side: runs and adapts a bundle. Never imports torch."""

if __name__ != "edgeadapt.runtime":
    raise ImportError(
        "this folder is installed as `edgeadapt.runtime`; run `pip install -e .` and import that"
    )
