"""Reports: from what a hospital exports to de-identified sections and structured findings."""
