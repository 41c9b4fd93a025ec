"""The typed configuration: one file per group, composed once per run. Importing it loads no torch."""
