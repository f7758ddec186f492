"""Anybody's weights become ours: any implementation's checkpoint or module as our reference."""
