"""What policies see and say: the view of the server, and the decision about its knobs."""
