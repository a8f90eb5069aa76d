"""Speed, memory and quality, measured."""

if __name__ != "edgeadapt.benchmarks":
    raise ImportError(
        "this folder is installed as `edgeadapt.benchmarks`; run `pip install -e .` and import that"
    )
