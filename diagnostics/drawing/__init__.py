"""Records → pictures, matplotlib figures, and what TensorBoard shows."""
