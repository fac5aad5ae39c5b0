"""How many drafts a server makes, changed while it runs: what SGLang asks, and workers that can."""
