"""What a trained model looks at, and what it computes: Grad-CAM over space and time, and features."""
