"""The Triton backend on the GPU of this machine: checks, then timings, then the cost table."""
