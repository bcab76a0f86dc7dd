"""The operations of mpt_fast, one folder each; installed and imported as `mpt_fast.kernels`."""

if __name__ != "mpt_fast.kernels":
    raise ImportError(
        f"this folder is part of mpt_fast, imported as mpt_fast.kernels and not as {__name__!r}; "
        "leave the checkout's root out of sys.path or install with `pip install -e .`"
    )
