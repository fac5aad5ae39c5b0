"""What Triton made of a kernel: its TTIR audited, its machine code compared."""
