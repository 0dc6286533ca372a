"""How good the search is, told from tables of trainings."""
