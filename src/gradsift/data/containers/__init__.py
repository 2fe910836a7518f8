"""Where rows lie: files, folders, archives, tables, memory; each row with its place."""
