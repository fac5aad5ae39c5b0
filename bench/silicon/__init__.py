"""The virtual clock against real servers: public end-to-end runs, predicted and held against what was measured."""
