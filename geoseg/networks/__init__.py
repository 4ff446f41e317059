"""Networks: pixels in, scores out.  Made by name with :func:`create`; the modules are imported on use."""
