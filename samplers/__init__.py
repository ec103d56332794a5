"""Pure numerics of sampling, on torch alone: nothing here knows a network, a config or a file."""
