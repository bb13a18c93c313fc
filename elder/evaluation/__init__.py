"""How good reconstructions are: quality measures, tables of results, and baselines."""
