"""compile, build, export, predict, save, load, serve."""
