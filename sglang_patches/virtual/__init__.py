"""SGLang's real scheduler in process, on a virtual clock: forward pass, sockets and clocks are replaced, no more."""
