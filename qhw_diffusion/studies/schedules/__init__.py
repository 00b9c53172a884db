"""The study of schedules: policies and schedules of the guidance scale at several numbers of sampling steps."""
