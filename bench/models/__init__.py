"""Published models, and what SGLang would hold and run of each: built without weights, against the published figures."""
