"""Traffic: request lengths and arrival times, read from public trace formats or drawn from a seed."""

from bench.traffic.closed import ClosedLoop
from bench.traffic.load import Traffic, load_traffic
from bench.traffic.request import Request

__all__ = ["ClosedLoop", "Request", "Traffic", "load_traffic"]
