"""What this package needs of the installed SGLang, and whether it is there: versions, hooks, attributes."""
