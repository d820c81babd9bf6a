//! Quirks of Jinja2 and Python that chat templates rely on, one line each.
