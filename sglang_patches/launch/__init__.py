"""Before a server runs and in its front end: flags, checks, where its policy comes from, its HTTP routes."""
