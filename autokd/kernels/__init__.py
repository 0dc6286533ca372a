"""What torch does in several passes over memory, in one: C++ compiled on the machine it runs on, with torch's own operators to fall back on."""
