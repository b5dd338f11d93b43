"""Lava Processes; each family's folder holds process.py and models.py and nothing else."""
