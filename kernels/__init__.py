"""Operations of the native engine, each with its numpy reference."""

if __name__ != "edgeadapt.kernels":
    raise ImportError(
        "this folder is installed as `edgeadapt.kernels`; run `pip install -e .` and import that"
    )
