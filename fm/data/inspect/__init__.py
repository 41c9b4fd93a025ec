"""What a dataset holds, and what the network sees of it: counts, charts, contact sheets, one page."""
