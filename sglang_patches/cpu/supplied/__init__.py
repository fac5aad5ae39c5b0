"""What is computed on a CPU in the place of operations that SGLang's released wheel has for CUDA alone."""
