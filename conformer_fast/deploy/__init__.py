"""What users do with a model: compile, build, export, save, load, predict, benchmark, tune."""
