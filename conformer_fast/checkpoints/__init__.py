"""Whose weights: any implementation's checkpoint or module becomes our reference."""
