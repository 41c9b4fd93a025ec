"""One root dataclass per verb: everything that the verb can be told; one file per kind of job."""
