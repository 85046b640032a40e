"""Reports of measured runs: figures, report.json, a terminal table and a self-contained page."""
