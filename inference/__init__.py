"""The algorithms: one file each, looked up by name (`ppl_dgm.algorithms()`) and imported on first use."""
