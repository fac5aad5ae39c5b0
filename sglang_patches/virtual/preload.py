"""Imports what every scheduler imports when it is built: 5 to 10 s, once for all that are forked afterwards."""

import logging

logging.disable(logging.WARNING)  # of the models that this machine lacks something for, none of which is asked for
try:
    import sglang.srt.models.registry  # noqa: F401
finally:
    logging.disable(logging.NOTSET)
