"""What people see: one page, its pictures and its figures as text."""
