"""Models: torch and safetensors only, plain arguments, never a config. Import the module that you need."""
