"""`python -m mpt_fast.cli` is `mpt-fast` (for torchrun, which starts modules)."""

from mpt_fast.cli import main

if __name__ == "__main__":
    main()
