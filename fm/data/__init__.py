"""Shards in, packed crops out. ``sample``, ``codec``, ``index`` and ``verify`` are torch-free."""
