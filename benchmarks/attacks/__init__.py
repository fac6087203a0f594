"""What a hostile user may give to read, by class, and the driver that tries it; ``benchmarks/attack.py`` runs them."""
