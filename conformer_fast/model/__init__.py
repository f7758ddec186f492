"""What is correct: the reference Conformer, its sizes, mathematics and names."""
