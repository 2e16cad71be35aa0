"""Is it enough to keep what the model looks at? python -m diagnostics.keep"""
