"""Noise to latents: schedules, solvers, guidance, and the loop over steps."""
