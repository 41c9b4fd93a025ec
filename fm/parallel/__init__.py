"""The only user of ``torch.distributed``: collectives and the DeepSpeed strategies."""
