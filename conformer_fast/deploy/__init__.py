"""What users do with a model: compile, build, export, save, load, serve, predict, benchmark, tune."""
