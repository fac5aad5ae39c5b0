"""From records of runs to metrics, tables, figures and pages."""
