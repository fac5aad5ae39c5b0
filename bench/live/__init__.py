"""Traffic replayed against real SGLang servers: load generator, servers, samples, arms in turn."""
