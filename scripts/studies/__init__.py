"""The paper's tables and figures as studies: grids of training runs, results and figures."""
