"""Tables and figures for people: percent, the field's column names, arrows."""
