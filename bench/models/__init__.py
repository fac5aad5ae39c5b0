"""Published models, built without weights as SGLang would build them, against their published figures."""
