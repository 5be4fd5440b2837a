"""The paper's tables and figures as studies: grids of training runs, what they gave, pictures."""
