"""What an iteration did and how long it took: clocks, counters, series, records."""
