"""How networks become losses and samples; a process has hyper-parameters, but no parameters and no state."""
