"""What SGLang's released wheel lacks to run where there is no CUDA driver."""
