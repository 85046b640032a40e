"""Seeded open-loop load: when requests arrive, what they ask, and how clients experience the answers."""
