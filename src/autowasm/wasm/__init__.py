"""The WebAssembly binary format, the checks of a module, and the archives that hold one."""
