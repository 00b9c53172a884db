"""How the variance of gradients of the package's circuits depends on qubits, depth, noise and shots."""
