"""The C++ runtime behind custom ops: how it is built, and how Python talks to it."""
