"""One module per format; each knows its format and nothing of coverage. ``guestmem.layout.recognise`` picks one."""
