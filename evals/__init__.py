"""How good an encoder is: frozen features, probes with intervals, baselines beside every number, one report."""
