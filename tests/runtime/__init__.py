"""Numbers: generated optimizers against float64 rules, against each other and against other libraries."""
