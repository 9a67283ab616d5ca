"""What a module is: header, sections, ABI, imports, validation; the archives that hold one."""
