"""From the graphs of a bundle to a program of kernel calls for one image size.

read -> fuse -> schedule -> place -> bind: each stage is a pure function from one `Program` to the
next, and each can be printed.
"""

if __name__ != "edgeadapt.runtime.plan":
    raise ImportError("import it as edgeadapt.runtime.plan")
