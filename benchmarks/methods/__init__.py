"""Every published system on the same images, with the same student: what it gains, and what it costs."""
