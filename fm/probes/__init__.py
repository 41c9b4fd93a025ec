"""What frozen features hold: pure functions of arrays (kNN, linear probe, ridge map, retrieval, patient bootstrap)."""
